"""Several ranks compute the same as one, and each can resume from the other's checkpoints."""

import pytest
import torch
from accelerate.state import PartialState
from runs import changed, checkpoint, curves, train_together, weights

from qwen3llada.errors import InputError
from qwen3llada.modeling.loading import load_pretrained
from qwen3llada.training.checkpoints import save_sharded
from qwen3llada.training.checkpoints.folder import CheckpointError
from qwen3llada.training.checkpoints.shards import SHARDS, Reader, is_sharded
from qwen3llada.training.loop import train
from qwen3llada.training.start import start as starting
from qwen3llada.training.start.memory_estimate import PLANS

STEPS, HALF = 4, 2  # an epoch and a third; steps of eight samples, the last of the epoch of six


@pytest.fixture
def alone(pretraining):
    """One process with eight samples in a step."""
    return changed(pretraining, max_steps=STEPS, save_steps=HALF, micro_batch_size=4, logging_steps=1)


def elsewhere(params, folder, **changes):
    paths = {"dst": folder / "model", "output_dir": folder / "work", "reports": folder / "reports"}
    return changed(params, **paths, **changes)


def losses(params):
    points = curves(params, STEPS)
    return torch.tensor([[point["train/loss"], point["train/grad_norm"]] for point in points if "train/loss" in point])


@pytest.mark.slow
def test_processes_give_the_loss_curve_of_one_and_resume_each_other(alone, tmp_path, monkeypatch):
    train(alone, seed=1)
    expected = losses(alone)
    assert len(expected) == STEPS
    for name, sharded in (("ddp", False), ("fsdp2", True)):
        together = elsewhere(alone, tmp_path / name, micro_batch_size=2)
        train_together(together, 2, sharded=sharded)
        torch.testing.assert_close(losses(together), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(weights(together), weights(alone), rtol=1e-3, atol=1e-4)

        assert is_sharded(checkpoint(together, HALF)) == sharded
        # one rank resumes in the middle of the run of two
        resumed = elsewhere(alone, tmp_path / f"{name} resumed", resume_from=str(checkpoint(together, HALF)))
        train(resumed, seed=1)
        torch.testing.assert_close(losses(resumed), expected, rtol=1e-5, atol=1e-5)
    # and the reverse: two ranks resume from a checkpoint of one, and keep as much gathered as they can
    monkeypatch.setattr(starting, "choose_plan", lambda *_, **options: PLANS[0])
    monkeypatch.setattr(save_sharded, "FILE_BYTES", 4000)
    spread = elsewhere(
        alone,
        tmp_path / "spread",
        micro_batch_size=2,
        resume_from=str(checkpoint(alone, HALF)),
    )
    train_together(spread, 2, sharded=True)
    torch.testing.assert_close(losses(spread), expected, rtol=1e-5, atol=1e-5)
    assert len(list(spread.dst.glob("model-*.safetensors"))) > 1
    exported = dict(load_pretrained(spread.dst).named_parameters())
    torch.testing.assert_close(exported, weights(alone), rtol=1e-3, atol=1e-4)
    # two go on from a checkpoint of two as if nothing had been
    monkeypatch.undo()
    whole = elsewhere(alone, tmp_path / "fsdp2", micro_batch_size=2)
    on = elsewhere(whole, tmp_path / "on", resume_from=str(checkpoint(whole, HALF)))
    train_together(on, 2, sharded=True)
    torch.testing.assert_close(weights(on), weights(whole), rtol=0, atol=0)
    assert curves(on, STEPS) == curves(whole, STEPS)
    with pytest.raises(InputError, match="is a checkpoint of FSDP2's shards, which resume_from takes"):
        train(elsewhere(alone, tmp_path / "no model", model=checkpoint(whole, STEPS)), seed=1)
    shard = checkpoint(whole, STEPS) / SHARDS / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    damaged = elsewhere(whole, tmp_path / "damaged", resume_from=str(checkpoint(whole, STEPS)))
    train_together(damaged, 2, sharded=True, work=refuse_a_damaged_shard)


def refuse_a_damaged_shard(params):
    """On every rank, although rank 0 alone reads the files."""
    with pytest.raises(CheckpointError, match=f"damaged: {SHARDS}/__1_0.distcp is not what was written"):
        train(params, seed=1)


@pytest.mark.slow
def test_two_sharded_copies_give_the_loss_curve_of_one_process(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "choose_plan", lambda *_, **options: PLANS[1])
    train(alone, seed=1)
    hybrid = elsewhere(alone, tmp_path / "hybrid", micro_batch_size=1)
    train_together(hybrid, 4, sharded=True, copies=2)
    torch.testing.assert_close(losses(hybrid), losses(alone), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights(hybrid), weights(alone), rtol=1e-3, atol=1e-4)
    stored = Reader(checkpoint(hybrid, STEPS) / SHARDS).read_metadata().state_dict_metadata
    assert {len(tensor.chunks) for tensor in stored.values()} == {2}  # halves, of one of the copies


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA processes find each other through NCCL")
def test_processes_that_do_not_find_each_other_do_not_train_alone(alone, monkeypatch):
    PartialState()  # of a process started before the launcher's variables were set
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2 processes were launched, of which 1 met"):
        train(alone, seed=1)
    assert not alone.output_dir.exists()
