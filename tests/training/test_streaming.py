"""Training on text that is tokenized during training: same result when resumed, and with several ranks."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from runs import assert_same_run, changed, checkpoint, train_together, weights
from tiny_settings import common

from qwen3llada.artifacts import read_json
from qwen3llada.corpus.fetch.shard_list import list_shards, write_shards, write_stream
from qwen3llada.corpus.fetch.sources import TextData
from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.training.checkpoints.folder import CheckpointError
from qwen3llada.training.checkpoints.save_and_restore import save
from qwen3llada.training.loop import train, training_steps
from qwen3llada.training.params import PretrainParams
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest
from qwen3llada.training.watch.monitor import Monitor

STEPS = 14


@pytest.fixture
def streamed(tiny, tmp_path) -> PretrainParams:
    """Three shards of about 150 words each. 14 steps of four samples of 16 tokens reach the second pass."""
    rng = np.random.default_rng(2)
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(3):
        starts = rng.integers(40, size=15)
        texts = [" ".join(f"w{(start + i) % 40}" for i in range(10)) for start in starts]
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (shards / f"{number}.jsonl").write_text("".join(lines))
    data = tmp_path / "data"
    params = TextData(name=str(shards), streaming=True, heldout_name="elsewhere")
    write_shards(tmp_path / "raw", list_shards(params)[0])
    write_stream(tmp_path / "raw", data / "train", load_tokenizer(tiny / "model"), params, max_length=16)
    (data / "heldout").symlink_to(tiny / "pretrain" / "heldout")
    knobs = common(tiny, tmp_path, "pretrain") | {"data": data, "max_steps": STEPS, "save_steps": STEPS}
    return PretrainParams.model_validate(knobs)


def elsewhere(params, folder, **changes):
    paths = {"dst": folder / "model", "output_dir": folder / "work", "reports": folder / "reports"}
    return changed(params, **paths, **changes)


def leave_after(params, step):
    run = start(params, seed=1, template="plain")
    monitor = Monitor(run, StopRequest())
    for result in training_steps(run, StopRequest()):
        monitor.take(result)
        if result.step == step:
            save(run, monitor.points)
            return


def test_a_stream_goes_on_bit_for_bit(streamed, tmp_path):
    """In the middle of the first and of the second pass, with and without workers before and after."""
    whole = changed(streamed, do_eval_loss=False, logging_steps=1)
    train(whole, seed=1)
    for step, before, after in ((2, 0, 2), (11, 2, 0)):
        broken = elsewhere(whole, tmp_path / str(step), num_workers=before)
        leave_after(broken, step)
        train(changed(broken, num_workers=after), seed=1)
        state = read_json(checkpoint(broken, STEPS) / "trainer_state.json")
        assert len(state["cursors"]) == 3
        assert min(cursor[0] for cursor in state["cursors"].values()) > 0  # all lanes are in a later pass
        assert_same_run(whole, broken, STEPS)


def test_processes_and_a_restart_in_fewer_change_nothing_but_rounding(streamed, tmp_path):
    whole = changed(streamed, do_eval_loss=False, optim={"lr": 0.001})
    train(whole, seed=1)
    two = elsewhere(whole, tmp_path / "two", gradient_accumulation_steps=1, save_steps=7)
    train_together(two, 2)
    torch.testing.assert_close(weights(whole), weights(two), rtol=1e-4, atol=1e-5)
    alone = elsewhere(whole, tmp_path / "alone", resume_from=str(checkpoint(two, 7)))
    train(alone, seed=1)
    torch.testing.assert_close(weights(whole), weights(alone), rtol=1e-4, atol=1e-5)


def test_block_diffusion_on_a_stream_goes_on_bit_for_bit(streamed, tmp_path):
    """Resumed in the second pass, where the blocks are longer than at the beginning; and with two processes."""
    schedule = [{"until": 0.4, "block_length": 2}, {"until": 1.0, "block_length": 4}]
    blocks = {"policy": "block_causal", "block_schedule": schedule}
    whole = changed(streamed, do_eval_loss=False, logging_steps=1, attention=blocks, optim={"lr": 0.001})
    train(whole, seed=1)
    broken = elsewhere(whole, tmp_path / "broken", num_workers=2)
    leave_after(broken, 11)
    train(changed(broken, num_workers=0), seed=1)
    assert_same_run(whole, broken, STEPS)
    two = elsewhere(whole, tmp_path / "two", gradient_accumulation_steps=1)
    train_together(two, 2)
    torch.testing.assert_close(weights(whole), weights(two), rtol=1e-4, atol=1e-5)


def test_block_diffusion_reads_what_full_attention_reads(streamed):
    """The same samples in the same order; each block of a sample has a level of its own, and masks follow it."""
    whole = changed(streamed, noise={"random_length_prob": 0.0, "eps": 1e-9})
    blocks = changed(whole, attention={"policy": "block_causal", "block_length": 4})
    full, blockwise = (
        [batch for step in islice(run.data.steps(0), STEPS) for batch in step.micro_batches]
        for run in (start(params, seed=1, template="plain") for params in (whole, blocks))
    )
    assert len(full) == 2 * STEPS
    for one, other in zip(full, blockwise, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        levels = other.noised.p_mask.unflatten(1, (4, 4))  # [B, blocks, positions]
        assert torch.equal(levels, levels[..., :1].expand_as(levels))
        assert all(len(row.unique()) == 4 for row in levels[..., 0])
        assert one.noised.p_mask.ndim == 1
    masked = torch.cat([batch.noised.masked.float().flatten() for batch in blockwise])
    levels = torch.cat([batch.noised.p_mask.flatten() for batch in blockwise])
    assert masked[levels > 0.5].mean() > 0.6 > 0.4 > masked[levels < 0.5].mean()


def test_a_stream_needs_a_number_of_steps(streamed):
    with pytest.raises(ValueError, match=r"max_steps must be above 0: streamed data have no end"):
        start(changed(streamed, max_steps=0), seed=1, template="plain")
    with pytest.raises(ValueError, match=r"max_length=8 must be 16 or more"):
        start(changed(streamed, max_length=8), seed=1, template="plain")


def test_another_stream_is_another_run(streamed, tmp_path):
    leave_after(streamed, 1)
    path = streamed.data / "train/stream.json"
    path.write_text(path.read_text().replace("2.jsonl", "3.jsonl"))
    again = changed(streamed, resume_from=str(checkpoint(streamed, 1)))
    with pytest.raises(CheckpointError, match="other data files"):
        start(again, seed=1, template="plain")
