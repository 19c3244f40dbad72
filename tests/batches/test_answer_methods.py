"""SFT on one block at a time, and in the order of trajectories."""

import json

import numpy as np
import pytest
import torch

from qwen3llada.batches.answer_methods import one_block, parts, trajectory_noise
from qwen3llada.batches.loader import make_loader
from qwen3llada.batches.samples import Sample
from qwen3llada.batches.settings import BatchSettings
from qwen3llada.batches.trajectories import Trajectories
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.diffusion.params import NoiseParams
from qwen3llada.errors import InputError
from qwen3llada.modeling.params import AttentionParams
from qwen3llada.training.params import SftParams

MASK, EOS = 99, 98


@pytest.mark.parametrize(
    ("from_zero", "expected"),
    [(False, [(3, 7), (7, 11), (11, 13)]), (True, [(3, 4), (4, 8), (8, 12), (12, 13)])],
)
def test_each_block_of_an_answer_is_chosen_as_often(from_zero, expected):
    """A prompt of 3 tokens, an answer of 10, blocks of 4: (where the prompt ends, where the sample ends)."""
    sample = Sample(np.arange(13), 3)
    chosen = [one_block(sample, part, 4, from_zero=from_zero) for part in (np.arange(600) + 0.5) / 600]
    found = [(one.prompt_length, len(one.tokens)) for one in chosen]
    assert sorted(set(found)) == expected
    assert {found.count(one) for one in expected} == {600 // len(expected)}
    assert all((one.tokens == sample.tokens[: len(one.tokens)]).all() for one in chosen)


def test_an_empty_answer_stays():
    assert one_block(Sample(np.arange(3), 3), 0.5, 4, from_zero=True).prompt_length == 3


class Answers:
    lengths = np.array([9, 9, 9, 9])

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Sample(np.arange(9) + 10 * index, 2, steps=np.array([1, 2, 2, 3, 1, 4, 4]))


def batch_of(method, policy="full", **changes):
    settings = BatchSettings(
        seed=1,
        noise=NoiseParams(t_range=(0.99999, 1.0)) if method == "semi_ar" else NoiseParams(),
        mask_token_id=MASK,
        eos_token_id=EOS,
        answer_method=method,
        attention=AttentionParams(policy=policy, block_length=3),
        micro_batch_size=4,
        **changes,
    )
    (batch,) = make_loader(Answers(), settings, epoch=0)
    return batch


@pytest.mark.parametrize("policy", ["full", "block_causal"])
def test_semi_ar_masks_one_block_after_clean_ones_and_hides_the_rest(policy):
    batch = batch_of("semi_ar", policy)
    for row in range(4):
        (masked,) = batch.noised.masked[row].nonzero(as_tuple=True)
        start, end = int(masked[0]), int(masked[-1]) + 1
        origin = 0 if policy == "block_causal" else 2
        assert (start - origin) // 3 == (end - 1 - origin) // 3  # all of one block
        assert start == max(2, (start - origin) // 3 * 3 + origin)
        assert batch.valid[row].sum() == end == min(9, ((start - origin) // 3 + 1) * 3 + origin)
        assert torch.equal(batch.noised.tokens[row, :start], batch.tokens[row, :start])


@pytest.mark.parametrize("policy", ["full", "block_causal"])
def test_trace_predicts_one_step_with_all_later_ones_masked(policy):
    batch = batch_of("trace", policy)
    steps, blocks = np.array([1, 2, 2, 3, 1, 4, 4]), np.arange(2, 9) // 3
    for row in range(4):
        predicted, hidden = batch.noised.masked[row, 2:].numpy(), (batch.noised.tokens[row, 2:] == MASK).numpy()
        assert predicted.any()
        if policy == "full":
            (step,) = set(steps[predicted])
            assert (predicted == (steps == step)).all()
            assert (hidden == (steps >= step)).all()
        else:
            for block in range(3):
                inside = blocks == block
                last = steps[inside][predicted[inside]]
                if len(last):
                    assert (hidden[inside] == (steps[inside] >= last[0])).all()


def test_the_mean_weight_of_each_token_of_a_trajectory_is_one_over_its_length():
    samples, weights = [Answers()[0]], torch.zeros(9)
    tokens = torch.arange(9)[None]
    rounds = 400
    for part in (np.arange(rounds) + 0.5) / rounds:
        noised, _ = trajectory_noise(
            samples, np.array([part]), tokens, mask_token_id=MASK, block_length=3, side_by_side=False
        )
        weights += LOSSES["guidelines"].token_weights(
            tokens, noised, mask_token_id=MASK, prompt_lengths=torch.tensor([2])
        )[0]
    torch.testing.assert_close(weights / rounds, torch.tensor([0.0] * 2 + [1 / 7] * 7))


def test_the_part_is_keyed_by_sample_and_epoch():
    order = np.arange(8)
    assert (parts(order, seed=1, epoch=0)[[3]] == parts(np.array([3]), seed=1, epoch=0)).all()
    assert (parts(order, seed=1, epoch=0) != parts(order, seed=1, epoch=1)).all()


def test_trajectories_are_read_from_rollouts(tmp_path):
    rows = [
        {"prompt_tokens": [1, 2], "tokens": [3, 4], "steps": [2, 1], "reward": 1.0},
        {"prompt_tokens": [5], "tokens": [6], "steps": [1], "reward": 0.0},
    ]
    for number, row in enumerate(rows):
        (tmp_path / f"batch-{number}.jsonl").write_text(json.dumps(row) + "\n")
    both, good = Trajectories(tmp_path), Trajectories(tmp_path, least=0.5)
    assert (both.lengths.tolist(), good.lengths.tolist()) == ([4, 2], [4])
    assert good[0].tokens.tolist() == [1, 2, 3, 4]
    assert (good[0].prompt_length, good[0].steps.tolist()) == (2, [2, 1])
    with pytest.raises(InputError, match="no trajectories with a reward of 2 or more"):
        Trajectories(tmp_path, least=2)
    (tmp_path / "batch-2.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(InputError, match=r"batch-2.jsonl: line 1 is no rollout of post-training: KeyError"):
        Trajectories(tmp_path)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"method": "trace"}, "trajectories=None must be given with method=trace"),
        ({"trajectories": "x"}, "trajectories=x must be null with method=random"),
        ({"least_reward": 1.0}, "least_reward=1.0 must be null with method=random"),
        ({"method": "trace", "trajectories": "x", "loss_impl": "dllm"}, "loss_impl=dllm does not go with method=trace"),
        ({"method": "trace", "trajectories": "x", "noise": {"views": 2}}, "noise.views=2 does not go with"),
    ],
)
def test_knobs_that_do_not_go_together(knobs, message):
    with pytest.raises(ValueError, match=message):
        SftParams.model_validate(knobs)
