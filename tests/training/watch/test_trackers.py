"""Curves beside DVCLive: calls of Accelerate's trackers, and errors for missing packages."""

import importlib.util
import json
from pathlib import Path

import pytest
from accelerate import tracking
from runs import changed, checkpoint, drawn_steps, train_together

from qwen3llada.commandline import ParamsError, validated
from qwen3llada.destinations import WORK, check_destinations
from qwen3llada.training.loop import train
from qwen3llada.training.params import PretrainParams
from qwen3llada.training.watch import trackers as module
from qwen3llada.training.watch.settings import settings_hash
from qwen3llada.training.watch.trackers import TRACKERS

TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


class Recorder(tracking.GeneralTracker):
    """A tracker of Accelerate that writes each of its calls as a line to a file in its logging folder."""

    name = "recorder"
    requires_logging_directory = True
    main_process_only = False  # as for W&B: the caller must restrict it to rank 0

    def __init__(self, run_name, logging_dir, **options):
        super().__init__()
        self.file = Path(logging_dir) / "calls.jsonl"
        self.run_name = run_name

    @property
    def tracker(self):
        return self

    def write(self, *call):
        with open(self.file, "a") as file:
            file.write(json.dumps(call) + "\n")

    def start(self):
        self.write("start", self.run_name)

    def store_init_configuration(self, values):
        self.write("config", values)

    def log(self, values, step=None, **kwargs):
        self.write("log", step, values)

    def finish(self):
        self.write("finish")


@pytest.fixture
def recorder(monkeypatch):
    """A tracker `json`, named after a package that is always installed."""
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "json", Recorder)
    monkeypatch.setitem(TRACKERS, "json", lambda folder: {})
    return {"telemetry": {"trackers": ["json"]}}


def calls(params):
    """The calls of each run of the tracker, in order of time."""
    files = sorted((params.output_dir / "trackers").glob("*/calls.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def test_a_tracker_gets_the_points_of_the_curves(pretraining, recorder):
    params = changed(pretraining, save_steps=6, **recorder)
    train(params, seed=1)
    ((start, config, *logs, finish),) = calls(params)
    assert (start, finish) == (["start", "qwen3llada"], ["finish"])
    assert config[1]["optim.lr"] == 0.01
    assert config[1]["optim.betas"] == "[0.9, 0.95]"
    assert config[1]["seed"] == 1
    drawn = [json.loads(line) for line in (checkpoint(params, 6) / "curves.jsonl").read_text().splitlines()]
    assert [{"step": step} | values for _, step, values in logs] == drawn
    assert [step for _, step, values in logs if "eval/loss" in values] == [4, 6]
    pytest.importorskip("dvclive", reason="DVCLive writes the curves' files, and is not installed")
    assert [step for _, step, values in logs if "train/loss" in values] == drawn_steps(params.reports, "train/loss")


def test_a_resumed_run_is_whole_for_the_tracker(pretraining, recorder, monkeypatch):
    times = iter(["1", "2"])
    monkeypatch.setattr(module.time, "strftime", lambda form: next(times))
    first = changed(pretraining, save_steps=4, **recorder)
    train(first, seed=1)
    again = changed(first, resume_from=str(checkpoint(first, 4)), dst=first.dst.with_name("again"))
    train(again, seed=1)
    whole, resumed = ([step for kind, step, *_ in run[2:-1] if kind == "log"] for run in calls(first))
    assert whole == resumed == [2, 4, 4, 6, 6]


def test_one_process_of_several_tells_the_tracker(pretraining, recorder):
    train_together(changed(pretraining, gradient_accumulation_steps=1, **recorder), 2)
    (run,) = calls(pretraining)
    assert [kind for kind, *_ in run].count("start") == 1
    assert [call[1] for call in run if call[0] == "log"] == [2, 4, 4, 6, 6]


def test_without_trackers_there_is_no_folder_for_them(pretraining):
    train(pretraining, seed=1)
    assert not (pretraining.output_dir / "trackers").exists()


def test_a_missing_package_is_named_before_anything_is_done(pretraining, monkeypatch):
    monkeypatch.setitem(TRACKERS, "no_such_package", lambda folder: {})
    params = changed(pretraining, telemetry={"trackers": ["no_such_package"]})
    with pytest.raises(ValueError, match=r"not installed: pip install no_such_package, or leave them out$"):
        train(params, seed=1)
    assert not params.output_dir.exists()
    assert not params.reports.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["tensorbord"], "'tensorbord' must be one of tensorboard, wandb, mlflow"),
        (["wandb", "wandb"], "must name each tracker once"),
    ],
)
def test_what_is_no_tracker_is_refused(given, message):
    with pytest.raises(ParamsError, match=message):
        validated(PretrainParams, {"telemetry": {"trackers": given}}, "here")


def test_the_report_knows_a_run_with_trackers_by_its_other_knobs(pretraining):
    followed = changed(pretraining, telemetry={"trackers": ["tensorboard"]})
    assert settings_hash(followed, seed=1) == settings_hash(pretraining, seed=1)


def test_the_folder_of_trackers_alone_is_ours(tmp_path):
    (tmp_path / "work/trackers").mkdir(parents=True)
    check_destinations({"output_dir": (tmp_path / "work", WORK)}, {})


def test_the_trackers_are_accelerates():
    assert set(TRACKERS) <= set(tracking.LOGGER_TYPE_TO_CLASS) - {"dvclive"}


def test_nothing_is_sent_unless_the_user_says_so(tmp_path, monkeypatch):
    """The environment that W&B and MLflow see when they start."""
    from types import SimpleNamespace

    for name in ("wandb", "mlflow"):
        for variable in TRACKERS[name](tmp_path):
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    seen = {}
    accelerator = SimpleNamespace(
        log_with=["wandb", "mlflow"],
        logging_dir=str(tmp_path / "trackers/run"),
        init_trackers=lambda *args, **kwargs: seen.update(module.os.environ),
        trackers=[],
    )
    environ = dict(module.os.environ)
    monkeypatch.setattr(module.os, "environ", environ)
    module.Trackers(accelerator, "sft", {})
    assert seen["WANDB_MODE"] == "online"  # set by the user
    assert seen["WANDB_DIR"] == str(tmp_path / "trackers/run")
    assert seen["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/trackers/mlflow.db"
    assert seen["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.delitem(environ, "WANDB_MODE")
    module.Trackers(accelerator, "sft", {})
    assert seen["WANDB_MODE"] == "offline"


@pytest.mark.skipif(not TENSORBOARD, reason="tensorboard is not installed (the extra `trackers`)")
def test_tensorboard_reads_the_curves(pretraining):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    params = changed(pretraining, telemetry={"trackers": ["tensorboard"]})
    train(params, seed=1)
    (folder,) = params.output_dir.glob("trackers/*/qwen3llada")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == drawn_steps(params.reports, "train/loss")
    assert [point.step for point in events.Scalars("eval/loss")] == [4, 6]
