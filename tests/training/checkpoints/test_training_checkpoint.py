"""Checkpoints: which are refused, skipped, kept and removed, and what is left after an error."""

import errno
import json
import logging
import os
import pickle
import shutil

import pytest
import torch
from runs import changed, checkpoint, saved_steps

from qwen3llada.training.checkpoints.fingerprint import short
from qwen3llada.training.checkpoints.folder import (
    CheckpointError,
    TrainerState,
    checkpoints,
    collect_remains,
    describe_others,
    finish,
    read_outcome,
    read_state,
    remove,
    rotate,
    run_folder,
    step_folder,
    write_checkpoint,
)
from qwen3llada.training.checkpoints.resuming import find_checkpoint
from qwen3llada.training.checkpoints.save_and_restore import restore
from qwen3llada.training.loop import train
from qwen3llada.training.watch.monitor import NonFiniteError

OURS = {"optim.lr": 1e-4, "code": "abc", "total_steps": 100}
FOREIGN = OURS | {"optim.lr": 3e-4}


def write(folder, step, *, fingerprint=OURS, content=b"weights"):
    state = TrainerState(global_step=step, fingerprint=fingerprint)
    written = step_folder(run_folder(folder, fingerprint), step)
    write_checkpoint(written, state, lambda f: (f / "model.bin").write_bytes(content))
    return written


def test_state_comes_back(tmp_path):
    state = TrainerState(global_step=7, epoch=1, epoch_batch=2, best={"step": 4, "eval_loss": 0.1}, fingerprint=OURS)
    state.telemetry = {"steps": 1, "loss": 0.1 + 0.2}
    write_checkpoint(tmp_path / "c", state, lambda folder: (folder / "x").write_text("y"))
    assert read_state(tmp_path / "c") == state


def cut(folder):
    (folder / "model.bin").write_bytes(b"wei")


def flip(folder):
    (folder / "model.bin").write_bytes(b"weightz")


def lose(folder):
    (folder / "model.bin").unlink()


def garble(folder):
    (folder / "trainer_state.json").write_text('{"global_step": ')


def strip(folder):
    (folder / "trainer_state.json").write_text(json.dumps({"fingerprint": OURS}))


def edit(folder):
    """The checkpoint has another step, and no files to check."""
    path = folder / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"global_step": -5, "files": {}}))


@pytest.mark.parametrize("damage", [cut, flip, lose, garble, strip, edit])
def test_damaged_one_is_named_and_passed_over_or_refused(tmp_path, damage, caplog):
    good, bad = write(tmp_path, 10), write(tmp_path, 20)
    damage(bad)
    with caplog.at_level(logging.WARNING):
        found, state = find_checkpoint("latest", tmp_path, OURS)
    assert (found, state.global_step) == (good, 10)
    assert str(bad) in caplog.text
    assert "damaged" in caplog.text
    with pytest.raises(CheckpointError, match=f"{bad}: damaged"):
        find_checkpoint(str(bad), tmp_path, OURS)
    damage(good)
    with pytest.raises(CheckpointError, match="no checkpoint of this run is whole; resume_from: '' starts anew"):
        find_checkpoint("latest", tmp_path, OURS)


def test_empty_asks_for_a_new_run_and_a_wrong_path_is_refused(tmp_path):
    write(tmp_path, 10)
    assert find_checkpoint("", tmp_path, OURS) is None
    with pytest.raises(CheckpointError, match="no checkpoint"):
        find_checkpoint(str(tmp_path / "nowhere"), tmp_path, OURS)


def test_runs_that_differ_never_touch_each_others_checkpoints(tmp_path):
    for step in (1, 2, 9, 10, 11):
        write(tmp_path, step)
    theirs = [write(tmp_path, step, fingerprint=FOREIGN, content=b"theirs") for step in (2, 11)]
    rotate(run_folder(tmp_path, OURS), keep=2, best_step=2)
    assert [folder.name for folder in checkpoints(run_folder(tmp_path, OURS))] == ["step-2", "step-10", "step-11"]
    assert [read_state(folder).fingerprint for folder in theirs] == [FOREIGN, FOREIGN]
    assert (theirs[1] / "model.bin").read_bytes() == b"theirs"
    named = describe_others(tmp_path, OURS)
    assert short(FOREIGN) in named
    assert short(OURS) not in named
    assert "not finished" in named


def test_what_a_killed_process_left_is_collected(tmp_path, monkeypatch):
    """Killed while saving, while removing, and between the two renames when a checkpoint is written again."""
    kept, half, aside = write(tmp_path, 1), write(tmp_path, 2), write(tmp_path, 3)
    (half / "trainer_state.json").unlink()
    partial = kept.with_name(".step-4.partial")
    shutil.copytree(kept, partial)
    os.rename(aside, aside.with_name(".step-3.old"))
    with monkeypatch.context() as killed:
        fifth = write(tmp_path, 5)
        killed.setattr(shutil, "rmtree", interrupt_after(1))
        with pytest.raises(KeyboardInterrupt):
            remove(fifth)
    collect_remains(tmp_path)
    assert sorted(path.name for path in kept.parent.iterdir()) == ["step-1", "step-3"]
    assert [read_state(folder).global_step for folder in checkpoints(kept.parent)] == [1, 3]


def interrupt_after(calls):
    """Replaces shutil.rmtree: after `calls` calls the process is killed at the start of the next."""
    done = []

    def removing(*args, **kwargs):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(args)

    return removing


def test_a_poisoned_pickle_is_refused_in_one_line_and_not_run(tmp_path):
    class Poison:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "optimizer.pt").write_bytes(pickle.dumps(Poison()))
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: not tensors and plain values") as error:
        restore(None, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()


def test_a_finished_run_is_noted_and_runs_before_it_are_left(tmp_path):
    ours, theirs = write(tmp_path, 10).parent, write(tmp_path, 10, fingerprint=FOREIGN).parent
    assert (read_outcome(ours), read_outcome(theirs)) == (None, None)
    finish(tmp_path, OURS)
    assert (read_outcome(ours), read_outcome(theirs)) == ("finished", "left")
    finish(tmp_path, FOREIGN)
    assert (read_outcome(ours), read_outcome(theirs)) == ("finished", "finished")


def test_full_disk_is_one_line_and_leaves_the_checkpoint_before(pretraining, monkeypatch):
    """torch's own writer would hide the system's error, which occurs on writing to the file."""
    params = changed(pretraining, save_steps=2, do_eval_loss=False)
    written, save = [], torch.save

    class Full:
        writes = 0

        def write(self, data):
            self.writes += 1
            if self.writes > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return len(data)

    def save_to_full_disk(content, file):
        written.append(file.name)
        save(content, Full() if len(written) == 3 else file)  # optimizer.pt of the second checkpoint

    monkeypatch.setattr(torch, "save", save_to_full_disk)
    with pytest.raises(OSError, match=r"^no space left on the disk for .*step-4, .* bytes to write") as error:
        train(params, seed=1)
    assert error.value.errno == errno.ENOSPC
    assert isinstance(error.value.__cause__, RuntimeError)
    assert os.listdir(checkpoint(params, 2).parent) == ["step-2"]
    assert read_state(checkpoint(params, 2)).global_step == 2


def test_loss_that_is_not_finite_stops_with_its_samples(pretraining, tmp_path):
    """A weight decay that multiplies weights by -99 in each step makes them overflow."""
    params = changed(pretraining, max_steps=30, save_steps=1, logging_steps=1, max_grad_norm=0.0)
    params = changed(params, optim=params.optim.model_dump() | {"lr": 10.0, "weight_decay": 10.0})
    with pytest.raises(NonFiniteError, match=r"step \d+: loss .* indices of the step's samples: \[\d+, .*step-\d+$"):
        train(params, seed=1)
    assert saved_steps(params.output_dir)
    assert not params.dst.exists()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_held_out_loss_that_is_not_finite_stops_before_it_is_saved(pretraining, monkeypatch, loss):
    monkeypatch.setattr("qwen3llada.training.loop.evaluate", lambda run: (loss, {}))
    params = changed(pretraining, save_steps=0, eval_every_steps=2)
    with pytest.raises(NonFiniteError, match=rf"^held-out loss {loss} after step 2 is not a finite number$"):
        train(params, seed=1)
    assert not saved_steps(params.output_dir)
