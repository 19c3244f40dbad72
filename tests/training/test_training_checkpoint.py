"""Checkpoints: what is refused, passed over, kept and removed, and what an error leaves behind."""

import errno
import json
import logging
import shutil

import pytest
import torch
from runs import changed

from qwen3llada.training.checkpoint import (
    CheckpointError,
    TrainerState,
    checkpoint_path,
    checkpoints,
    find_checkpoint,
    read_state,
    rotate,
    write_checkpoint,
)
from qwen3llada.training.fingerprint import differences, fingerprint
from qwen3llada.training.loop import train
from qwen3llada.training.monitor import NonFiniteError

OURS = {"optim.lr": 1e-4, "code": "abc"}


def write(folder, step, *, fingerprint=OURS, content=b"weights"):
    state = TrainerState(global_step=step, fingerprint=fingerprint)
    write_checkpoint(checkpoint_path(folder, step), state, lambda f: (f / "model.bin").write_bytes(content))
    return checkpoint_path(folder, step)


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


@pytest.mark.parametrize("damage", [cut, flip, lose, garble, strip])
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


def test_foreign_one_is_named_and_passed_over_or_refused(tmp_path, caplog):
    foreign = write(tmp_path, 20, fingerprint=OURS | {"optim.lr": 3e-4})
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint("latest", tmp_path, OURS) is None
    assert "optim.lr is 0.0003 there and 0.0001 here" in caplog.text
    with pytest.raises(CheckpointError, match=r"made by another run: optim\.lr is 0\.0003 there and 0\.0001 here"):
        find_checkpoint(str(foreign), tmp_path, OURS)


def test_empty_asks_for_a_new_run_and_a_wrong_path_is_refused(tmp_path):
    write(tmp_path, 10)
    assert find_checkpoint("", tmp_path, OURS) is None
    with pytest.raises(CheckpointError, match="no checkpoint"):
        find_checkpoint(str(tmp_path / "nowhere"), tmp_path, OURS)


def test_rotation_keeps_newest_best_and_foreign(tmp_path):
    for step in (1, 2, 9, 10, 11):
        write(tmp_path, step)
    write(tmp_path, 3, fingerprint={"code": "other"})
    rotate(tmp_path, OURS, keep=2, best_step=2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-2", "step-3", "step-10", "step-11"]


def test_fingerprint_tells_runs_apart(pretraining, tiny, tmp_path):
    def mark(params, **changes):
        kinds = {"seed": 1, "step_size": 4, "total_steps": 6, "template": "plain"} | changes
        return fingerprint(params, **kinds)

    same = changed(pretraining, save_steps=3, num_workers=2, micro_batch_size=1, gradient_accumulation_steps=4)
    assert mark(pretraining) == mark(same)
    # what the device's lack of memory makes people change must not cost them their checkpoints
    assert mark(pretraining) == mark(changed(pretraining, gradient_checkpointing=True, cuda_graphs="never"))
    noise = pretraining.noise.model_dump() | {"schedule": "cosine"}
    other = mark(changed(pretraining, noise=noise, loss_impl="dllm"), step_size=8)
    named = differences(mark(pretraining), other)
    assert named == (
        "loss_impl is 'dllm' there and 'guidelines' here, noise.schedule is 'cosine' there and 'uniform' here,"
        " step_size is 8 there and 4 here"
    )
    shutil.copytree(pretraining.data, tmp_path / "data")
    moved = changed(pretraining, data=tmp_path / "data")
    assert mark(pretraining) == mark(moved)
    tokens = tmp_path / "data/train/tokens.arrow"
    content = bytearray(tokens.read_bytes())
    content[len(content) // 2] ^= 1
    tokens.write_bytes(content)
    assert differences(mark(pretraining), mark(moved)) == "other data files"


def test_full_disk_is_one_line_and_leaves_the_checkpoint_before(pretraining, monkeypatch):
    params = changed(pretraining, save_steps=2, do_eval_loss=False)
    written, save = [], torch.save

    def save_to_full_disk(content, file):
        written.append(file.name)
        if len(written) == 3:  # optimizer.pt of the second checkpoint
            with open("/dev/full", "wb") as full:
                return save(content, full)
        return save(content, file)

    monkeypatch.setattr(torch, "save", save_to_full_disk)
    with pytest.raises(OSError, match=r"no space left on the disk for .*step-4.* bytes to write") as error:
        train(params, seed=1)
    assert error.value.errno == errno.ENOSPC
    assert [folder.name for folder in (params.output_dir / "checkpoints").iterdir()] == ["step-2"]
    assert read_state(checkpoint_path(params.output_dir, 2)).global_step == 2


def test_loss_that_is_not_finite_stops_with_its_samples(pretraining, tmp_path):
    """A learning rate that makes the weights overflow."""
    params = changed(pretraining, max_steps=30, save_steps=1, logging_steps=1, max_grad_norm=0.0)
    params = changed(params, optim=params.optim.model_dump() | {"lr": 1e30})
    with pytest.raises(NonFiniteError, match=r"step \d+: loss .* indices of the step's samples: \[\d+, .*step-\d+$"):
        train(params, seed=1)
    saved = [read_state(folder).global_step for folder in checkpoints(params.output_dir)]
    assert saved
    assert not params.dst.exists()
