"""A run that was interrupted, killed or told to stop continues as if nothing had happened."""

import os
import random
import re
import shutil
import signal
import time

import pytest
from runs import (
    assert_same_run,
    changed,
    checkpoint,
    curves,
    drawn_steps,
    elsewhere,
    leave_after,
    start_training,
)
from waiting import DEADLINE, newest, wait_until

from qwen3llada.artifacts import read_json, read_jsonl
from qwen3llada.training.loop import train
from qwen3llada.training.stopping import RESUMABLE

STEPS = 14  # two epochs and a half


@pytest.mark.parametrize("kind", ["pretraining", "fine_tuning"])
def test_resumed_run_is_bit_exact(kind, request, tmp_path):
    whole = changed(request.getfixturevalue(kind), max_steps=STEPS, save_steps=STEPS)
    train(whole, seed=1)
    # in the first epoch; at its end; in the next, between two points of the curves, with loader workers
    # One place is enough for fine-tuning: the order of its samples is made in the same way.
    places = ((3, 0), (6, 0), (9, 2)) if kind == "pretraining" else ((9, 2),)
    folders = []
    for step, workers in places:
        broken = elsewhere(whole, tmp_path / str(step), num_workers=workers)
        leave_after(broken, step)
        train(broken, seed=1)
        assert_same_run(whole, broken, STEPS)
        folders.append(broken.reports)
    pytest.importorskip("dvclive", reason="DVCLive writes the curves' files, and is not installed")
    for folder in folders:
        assert drawn_steps(folder, "train/loss") == list(range(2, STEPS + 1, 2))


# No tracked curve or summary key may have a name like these.
OF_THE_MACHINE = re.compile(r"second|time|date|duration|speed|memory|mfu|resume|process|host|compiled|graph|writer")


def tracked(params) -> dict[str, bytes]:
    """The files of a training run that dvc.yaml lists: dst, plots and summary.json."""
    roots = [params.dst, params.reports / "plots", params.reports / "summary.json"]
    files = [file for root in roots for file in [root, *root.rglob("*")] if file.is_file()]
    return {str(file): file.read_bytes() for file in sorted(files)}


@pytest.mark.parametrize(
    ("kind", "adapter"), [("pretraining", {}), ("fine_tuning", {"method": "lora", "merge": False})]
)
def test_interrupted_run_leaves_the_same_bytes(kind, adapter, request):
    """Files that DVC tracks depend only on code, parameters and data. All others are beside them."""
    params = request.getfixturevalue(kind)
    params = changed(params, max_steps=STEPS, adapter=params.adapter.model_dump() | adapter)
    train(params, seed=1)
    whole = tracked(params)
    summary, speed = (read_json(params.reports / f"{name}.json") for name in ("summary", "speed"))
    for folder in (params.dst, params.output_dir, params.reports):
        shutil.rmtree(folder)

    leave_after(params, 9)  # between two points of the curves
    train(params, seed=1)
    assert tracked(params) == whole
    resumed = read_json(params.reports / "speed.json")
    assert (speed["resumed_from"], resumed["resumed_from"]) == (None, str(checkpoint(params, 9)))

    points = list(read_jsonl(params.reports / "speed.jsonl"))
    assert [point["step"] for point in points] == list(range(2, STEPS + 1, 2))
    assert all(point["train/tokens_per_second"] > 0 < point["train/peak_memory_gib"] for point in points)
    assert {"tokens_per_second", "peak_memory_gib", "estimated_memory_gib", "processes"} <= resumed.keys()

    assert not [name for name in summary if OF_THE_MACHINE.search(name)]
    pytest.importorskip("dvclive", reason="DVCLive writes the curves' files, and is not installed")
    curves = [file.removeprefix(str(params.reports)) for file in whole if file.endswith(".tsv")]
    assert {"/plots/metrics/train/loss.tsv", "/plots/metrics/eval/loss.tsv"} <= set(curves)
    assert not [name for name in curves if OF_THE_MACHINE.search(name)]


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    from tiny_settings import common

    from qwen3llada.training.params import PretrainParams

    folder = tmp_path_factory.mktemp("uninterrupted")
    knobs = {"max_steps": 40, "save_steps": 2, "eval_every_steps": 20}  # each evaluation forks loader workers
    params = PretrainParams.model_validate(common(tiny, folder, "pretrain") | knobs)
    train(params, seed=1)
    return params


@pytest.mark.slow
def test_killed_runs_end_as_one_run(uninterrupted, tmp_path):
    """SIGKILL at random moments and during saving. Each new run continues from an intact checkpoint."""
    params = elsewhere(uninterrupted, tmp_path)
    moments = random.Random(0)
    progress = [0]
    while progress[-1] < 40:
        child = start_training(params)
        wait_until(lambda: newest(params) > progress[-1], child)
        if len(progress) % 2:
            wait_until(lambda: list(params.output_dir.glob("checkpoints/*/.step-*")), child)
        else:
            time.sleep(moments.uniform(0.0, time_between_checkpoints(params, child)))
        if len(progress) < 6:
            os.kill(child.pid, signal.SIGKILL)
        child.join(DEADLINE)
        progress.append(newest(params))
    assert len(progress) > 4, f"killed too seldom to show anything: {progress}"
    assert_same_run(uninterrupted, params, 40)
    assert not list(params.output_dir.glob("checkpoints/*/.*"))  # leftovers of a killed save are gone


def time_between_checkpoints(params, child) -> float:
    """Seconds between the next two checkpoints."""
    seen = []
    for _ in range(2):
        before = newest(params)
        wait_until(lambda before=before: newest(params) > before, child)
        seen.append(time.monotonic())
    return seen[1] - seen[0]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 2), (signal.SIGINT, 0)])
def test_stop_signal_saves_and_exits_resumable(uninterrupted, tmp_path, number, workers):
    params = elsewhere(uninterrupted, tmp_path, num_workers=workers)
    child = start_training(params)
    wait_until(lambda: newest(params) >= 2, child)
    os.killpg(child.pid, number)  # the whole group, as terminals and schedulers do
    child.join(DEADLINE)
    assert child.exitcode == RESUMABLE == 75
    stopped = newest(params)
    assert 2 <= stopped < 40
    assert len(curves(params, stopped)) >= stopped // params.logging_steps
    assert not params.dst.exists()
    train(params, seed=1)
    assert_same_run(uninterrupted, params, 40)
