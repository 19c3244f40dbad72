"""The message and final state of a run that is told to stop. Without dvc and without Prefect's server."""

import logging
import signal
import sys

import pytest
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Completed, Failed

from flows import interruption, pipeline, states, sweep
from flows.graph import Stage
from flows.interruption import Interrupted, status_of_stop
from flows.stage import run_dvc, run_stage
from flows.variants import Variant

SAVED = "stopped by SIGTERM: checkpoint saved at step 3 in out/step-3; the next run goes on from there"
REPORT = "ERROR: failed to reproduce 'train': failed to run: python train.py, exited with 75"
NOTE = "what DVC says next is about this stop (exit status 75): nothing is broken"
# Prints what dvc and a training print when the training is stopped, which leaves a progress bar in mid-line.
DVC = f"""
import signal, sys, time
def stop(*_):
    print("a: 5%|5| 3/40 [00:01<00:09, 3.9step/s]" + {SAVED!r})
    print({NOTE!r})
    print({REPORT!r}, flush=True)
    sys.exit(255)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def no_signal_yet(monkeypatch):
    monkeypatch.setattr(interruption, "_signals", [])


@pytest.mark.parametrize(
    ("signalled", "status"),
    [(KeyboardInterrupt(), 130), (SystemExit(143), 143), (TerminationSignal(signal.SIGTERM), 143)],
)
def test_a_stopped_stage_says_what_it_saved_in_place_of_the_error_of_dvc(tmp_path, signalled, status):
    shown = []

    def emit(lines):
        shown.extend(lines)
        if lines == ["ready"]:
            raise signalled

    with pytest.raises(Interrupted) as stop:
        run_dvc([sys.executable, "-c", DVC], emit, timeout=0, grace=20, root=tmp_path)
    assert str(stop.value) == SAVED
    assert status_of_stop() == status
    assert [line for line in shown if not line.startswith("guard: ")] == [
        "ready",
        f"a: 5%|5| 3/40 [00:01<00:09, 3.9step/s]{SAVED}",
    ]


def test_an_error_while_a_stage_runs_stays_one(tmp_path):
    def emit(lines):
        raise ValueError("the page cannot be written")

    with pytest.raises(ValueError, match="the page cannot be written"):
        run_dvc([sys.executable, "-c", "print('ready')"], emit, timeout=0, grace=20, root=tmp_path)


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """Calls of the flows' functions without Prefect around them; the stage is told to stop."""

    def stop(*args, **kwargs):
        raise Interrupted(SAVED)

    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.stage.run_dvc", stop)
    monkeypatch.setattr("flows.workspace.check_parameters", lambda root: None)
    monkeypatch.setattr(pipeline, "get_run_logger", lambda: None)
    monkeypatch.setattr(pipeline, "Progress", lambda name: None)
    monkeypatch.setattr(pipeline, "read_stages", lambda *args, **kwargs: [Stage("train")])
    monkeypatch.setattr(sweep, "read_stages", lambda *args, **kwargs: [Stage("train")])
    monkeypatch.setattr(pipeline, "read_metrics", dict)
    monkeypatch.setattr(
        pipeline, "with_policy", lambda stage, label: lambda *a, return_state, **k: pipeline.dvc_stage.fn(*a, **k)
    )


def test_the_task_the_flow_and_the_variant_end_as_cancelled(stages, tmp_path):
    said = f"stage train: {SAVED}"
    ended = [
        pipeline.dvc_stage.fn(Stage("train")),
        pipeline.pipeline.fn(),
        sweep.run_variant.fn(Variant("v", ()), tmp_path, []),
    ]
    assert [state.type.value for state in ended] == ["CANCELLED"] * 3
    assert [state.message for state in ended] == [said, said, f"v: {said}"]


def test_a_signal_between_stages_ends_the_flow_as_cancelled(stages, monkeypatch):
    def signalled(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_stages", signalled)
    state = pipeline.pipeline.fn()
    assert (state.type.value, state.message) == ("CANCELLED", "stopped; the next run goes on from what is saved")


@pytest.mark.parametrize("intent", ["cancel", "reschedule", "relinquish"])
def test_of_a_run_that_a_worker_stops_the_worker_sets_the_state(monkeypatch, caplog, intent):
    monkeypatch.setattr(states, "get_run_logger", lambda: logging.getLogger("run"))
    assert states.end_of_flow(Interrupted(SAVED)).is_cancelled()
    monkeypatch.setattr(states, "get_intent", lambda: intent)
    with caplog.at_level(logging.INFO, "run"), pytest.raises(TerminationSignal):
        states.end_of_flow(Interrupted(SAVED))
    assert caplog.messages == [SAVED]


def test_the_line_and_the_status_on_a_terminal(capsys):
    assert [states.report(state) for state in (Completed(), Failed(message="no"), Cancelled(message=SAVED))] == [
        0,
        1,
        143,
    ]
    assert capsys.readouterr().err.splitlines() == ["error: no", SAVED]


def test_a_stage_is_named_with_what_it_saved(stages):
    with pytest.raises(Interrupted, match=f"^stage train: {SAVED}$"):
        run_stage(Stage("train"), lambda lines: None)
