"""Before its first step a run checks that it may write to its destinations, and that no other run uses them."""

import os
from pathlib import Path

import pytest
from runs import CONTEXT, changed, free_port, run_together, start_process

from qwen3llada.folder_lock import hold_folder, released_folders
from qwen3llada.training.loop import train
from qwen3llada.training.start.claiming import claim_destinations
from qwen3llada.training.start.start import start


def test_what_training_must_not_destroy(pretraining, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml", "texts/a.txt", "work/checkpoints/step-2/trainer_state.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for knob, path, message in (
        ("dst", "texts", "holds a.txt"),
        ("dst", pretraining.model, "must not be the input model"),
        ("dst", pretraining.data, "must not be the input data"),
        ("dst", pretraining.data / "train", "must not lie in the input data"),
        ("dst", pretraining.output_dir, "must not be output_dir too"),
        ("dst", pretraining.output_dir / "checkpoints/step-2", "must not lie in output_dir"),
        ("output_dir", "texts", "holds a.txt"),
        ("reports", ".", "must not be the project's folder"),
        ("reports", "", "must not be the project's folder"),
        ("reports", "texts", "holds a.txt"),
    ):
        with pytest.raises(ValueError, match=rf"^{knob}=.* {message}"):
            start(changed(pretraining, **{knob: path}), seed=1, template="plain")
        assert sorted(tmp_path.rglob("*")) == before, knob
    elsewhere = tmp_path / "their/checkpoints/step-1"
    elsewhere.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^dst=.*must not be the input resume_from"):
        start(changed(pretraining, dst=elsewhere, resume_from=str(elsewhere)), seed=1, template="plain")


def hold(params, held, end) -> None:
    hold_folder("output_dir", params.output_dir, create=True)
    held.set()
    end.wait(60)


def test_two_runs_into_one_folder(pretraining):
    held, end = CONTEXT.Event(), CONTEXT.Event()
    process = start_process(hold, pretraining, held, end)
    assert held.wait(30)
    with pytest.raises(ValueError, match=f"is in use by process {process.pid}"):
        start(pretraining, seed=1, template="plain")
    end.set()
    process.join(30)
    assert not pretraining.reports.exists()


def test_a_run_holds_its_folder_while_it_trains_and_may_be_repeated(pretraining, monkeypatch):
    """The next run recognises the files that a run leaves. During the run its lock is held."""
    from qwen3llada import folder_lock
    from qwen3llada.training import loop

    held = []
    save_final_model = loop.save_final_model
    monkeypatch.setattr(
        loop, "save_final_model", lambda run: (held.append(len(folder_lock._held)), save_final_model(run))
    )
    for _ in range(2):
        train(changed(pretraining, save_steps=3, max_steps=3, resume_from=""), seed=1)
    assert held == [1, 1]
    assert not folder_lock._held


def claim(rank: int, params, port: int, out: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    accelerator = Accelerator(cpu=True)
    try:
        claim_destinations(params, accelerator, started=True)
    except ValueError as error:
        (out / str(rank)).write_text(str(error))


def test_all_processes_are_refused_together(pretraining, tmp_path):
    with released_folders():
        hold_folder("output_dir", pretraining.output_dir, create=True)
        run_together(2, claim, pretraining, free_port(), tmp_path)
    assert f"is in use by process {os.getpid()}" in (tmp_path / "0").read_text()
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
