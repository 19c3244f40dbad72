"""Other ways to learn an answer than under random masks: one block at a time, or in the order of a trajectory.

They mirror dLLM-RL's SFT (arXiv 2509.06949): its semi-autoregressive and its trace method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qwen3llada.batches.samples import Sample
from qwen3llada.diffusion.keyed_random import Purpose, philox_words, unit_interval
from qwen3llada.diffusion.trajectory import step_groups

if TYPE_CHECKING:
    from torch import Tensor

    from qwen3llada.diffusion.corruption import Noised


def parts(positions: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.float64]:
    """A uniform in [0, 1) for each sample, [B] -> [B], which chooses the part of its answer that is learnt."""
    words = [philox_words(seed, epoch, (0, Purpose.ANSWER_PART, int(index)), 1) for index in positions]
    return unit_interval(np.concatenate([np.empty(0, np.uint64), *words]))


def one_block(sample: Sample, part: float, block_length: int, *, from_zero: bool) -> Sample:
    """A block of the answer alone: what comes before it belongs to the prompt, what comes after it is cut off.

    Args:
        part: in [0, 1), chooses among the blocks of the answer. from_zero: blocks are counted from the sample's first
            token, else from the answer's.
    """
    first, length = sample.prompt_length or 0, len(sample.tokens)
    if length <= first:
        return sample
    origin = 0 if from_zero else first
    low, high = (first - origin) // block_length, (length - 1 - origin) // block_length
    number = low + int(part * (high - low + 1))
    start, end = origin + number * block_length, origin + (number + 1) * block_length
    return sample._replace(tokens=sample.tokens[:end], prompt_length=max(first, start))


def trajectory_noise(
    samples: Sequence[Sample],
    chosen: NDArray[np.float64],
    tokens: Tensor,
    *,
    mask_token_id: int,
    block_length: int,
    side_by_side: bool,
) -> tuple[Noised, Tensor]:
    """Answers as they were at a random step of their trajectories, [B, L], and the share that was masked, [B].

    Predicted are the tokens that the step committed. p is 1 over the number of steps, so that the loss, weighted by
    1/p, has the mean of predicting every token once.

    Args:
        samples: with their steps. chosen [B]: uniforms that choose the step. tokens [B, L]: clean.
        side_by_side: the blocks, counted from a sample's first token, each take their own steps.
    """
    import torch

    from qwen3llada.diffusion.corruption import Noised

    noisy, predicted = tokens.clone(), torch.zeros_like(tokens, dtype=torch.bool)
    p, shares = torch.ones(len(samples)), torch.ones(len(samples))
    for row, (sample, uniform) in enumerate(zip(samples, chosen, strict=True)):
        start, end = sample.prompt_length or 0, len(sample.tokens)
        blocks = np.arange(start, end) // block_length if side_by_side else None
        assert sample.steps is not None
        groups = step_groups(sample.steps, blocks)
        count = int(groups.max()) + 1
        group = int(uniform * count)
        noisy[row, start:end][torch.from_numpy(groups >= group)] = mask_token_id
        predicted[row, start:end] = torch.from_numpy(groups == group)
        p[row], shares[row] = 1 / count, float((groups >= group).mean())
    return Noised(noisy, predicted, p), shares
