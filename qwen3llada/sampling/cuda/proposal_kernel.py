"""Merge the parts of each position's logits into a proposed token and its score: a Triton kernel, in float64.

Shapes: U units of W columns, N = U·W positions, P parts.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3llada.sampling.cuda.logits_kernel import NOTHING, Form, Parts
from qwen3llada.sampling.cuda.noise_kernels import POSITION, SCORE, gumbel64, step_key, uniform64

POSITIONS_TILE = 16


class Proposals(NamedTuple):
    """What the logits propose at each position. Scores of positions that are not masked never win."""

    tokens: Tensor  # [N] int32
    log_probs: Tensor  # [N] float64, -inf at positions that are not masked
    scores: Tensor  # [N] float64, likewise
    entropy: Tensor  # [N] float64, nats, inf at positions that are not masked; set only where unmasking reads it

    @classmethod
    def empty(cls, positions: int, device: torch.device) -> "Proposals":
        numbers = torch.zeros(3, positions, dtype=torch.float64, device=device)
        return cls(torch.zeros(positions, dtype=torch.int32, device=device), *numbers)


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0 in float64, also where 1 + x rounds to 1 (Kahan)."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * x / tl.where(y == 1.0, 1.0, y - 1.0))


@triton.jit
def _score(key, step, position, log_prob, tail, gap, entropy, temperature, REMASKING: tl.constexpr):
    """The scores of `qwen3llada.sampling.remasking`. gap: second largest logit minus the largest."""
    if REMASKING == "random":
        score = uniform64(step_key(key, step, SCORE, position))
    elif REMASKING == "random_topk":
        score = log_prob + temperature * gumbel64(step_key(key, step, SCORE, position))
    elif REMASKING == "entropy":
        score = -entropy
    elif REMASKING == "margin":
        score = (1.0 - tl.exp(gap)) / (1.0 + tail)
    else:
        tl.static_assert(REMASKING == "low_confidence")
        score = log_prob
    return score


@triton.jit(do_not_specialize=["positions", "width"])
def _propose(
    values_ptr, parts_ptr, masked_ptr, keys_ptr, shares_ptr, steps_ptr, knobs_ptr,
    tokens_ptr, log_probs_ptr, scores_ptr, entropy_ptr, positions, width,
    DRAWS: tl.constexpr, ENTROPY: tl.constexpr, SECOND: tl.constexpr, REMASKING: tl.constexpr,
    LOGARITHMIC: tl.constexpr, DRAWS_POSITIONS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = n < positions
    masked = tl.load(masked_ptr + n, mask=keep, other=0) != 0
    split = tl.arange(0, SPLITS)[None, :]
    at = n[:, None] * SPLITS + split
    there, plane = keep[:, None], positions * SPLITS
    part = tl.load(values_ptr + at, mask=there, other=NOTHING)
    top, winner = tl.max(part, 1, return_indices=True)  # the first of equal parts, so the lowest token id
    won, real = split == winner[:, None], part > NOTHING
    token = tl.sum(tl.where(won, tl.load(parts_ptr + at, mask=there, other=0), 0), 1)
    others = tl.load(values_ptr + plane + at, mask=there, other=0.0) + tl.where(won | (part <= NOTHING), 0.0, 1.0)
    lower = part - top[:, None]
    decay = tl.exp(lower)
    tail = tl.sum(others * decay, 1).to(tl.float64)
    log_prob = -_log1p(tail)
    gap, entropy = tail, tail
    if SECOND:
        second = tl.load(values_ptr + 2 * plane + at, mask=there, other=NOTHING)
        gap = (tl.max(tl.maximum(second, tl.where(won, NOTHING, part)), 1) - top).to(tl.float64)
    if ENTROPY:
        weighted = tl.load(values_ptr + 3 * plane + at, mask=there, other=0.0)
        count = tl.load(values_ptr + plane + at, mask=there, other=0.0) + 1.0
        sums = tl.sum(tl.where(real, (weighted + lower * count) * decay, 0.0), 1).to(tl.float64)
        entropy = -log_prob - sums / (1.0 + tail)
    if DRAWS:
        drawn = tl.load(values_ptr + 4 * plane + at, mask=there, other=float("-inf"))
        _, winner = tl.max(drawn, 1, return_indices=True)
        won = split == winner[:, None]
        token = tl.sum(tl.where(won, tl.load(parts_ptr + plane + at, mask=there, other=0), 0), 1)
        x = tl.sum(tl.where(won, tl.load(values_ptr + 5 * plane + at, mask=there, other=0.0), 0.0), 1)
        log_prob += (x - top).to(tl.float64)
    unit, position, units = n // width, n % width, positions // width
    step = tl.load(steps_ptr + unit, mask=keep, other=0)
    key = tl.load(keys_ptr + unit, mask=keep, other=0)
    shares = tl.maximum(tl.load(shares_ptr + unit, mask=keep, other=1), 1).to(tl.float64)
    # as `remasking.annealed`
    temperature = tl.load(knobs_ptr + 2 * units + unit, mask=keep, other=0.0)
    temperature *= tl.maximum(1.0 - (step + 1).to(tl.float64) / shares, 0.0)
    score = _score(key, step, position, log_prob, tail, gap, entropy, temperature, REMASKING)
    if DRAWS_POSITIONS:  # as `remasking.drawn`
        if not LOGARITHMIC:
            score = tl.log(tl.maximum(score, 2.2250738585072014e-308))
        spread = tl.load(knobs_ptr + 3 * units + unit, mask=keep, other=0.0)
        score += spread * gumbel64(step_key(key, step, POSITION, position))
    tl.store(tokens_ptr + n, token, mask=keep)
    tl.store(log_probs_ptr + n, tl.where(masked, log_prob, float("-inf")), mask=keep)
    tl.store(scores_ptr + n, tl.where(masked, score, float("-inf")), mask=keep)
    if ENTROPY:
        tl.store(entropy_ptr + n, tl.where(masked, entropy, float("inf")), mask=keep)


def propose(
    parts: Parts,
    masked: Tensor,
    keys: Tensor,
    shares: Tensor,
    steps: Tensor,
    knobs: Tensor,
    proposals: Proposals,
    *,
    form: Form,
    logarithmic: bool,
) -> None:
    """Write what the parts of every position propose to `proposals`.

    Args:
        masked: [U, W] bool. keys, shares, steps: [U] integers; `steps` are the numbers of the units' steps.
        knobs: [5, U] float64, see `logits_kernel.Knob`.
        logarithmic: whether the score is a logarithm already (`remasking.Score`).
    """
    positions = masked.numel()
    _propose[(triton.cdiv(positions, POSITIONS_TILE),)](
        *parts, masked.view(torch.uint8), keys, shares, steps, knobs, *proposals, positions, masked.shape[1],
        DRAWS=form.draws, ENTROPY=form.entropy, SECOND=form.second, REMASKING=form.remasking,
        LOGARITHMIC=logarithmic, DRAWS_POSITIONS=form.draws_positions, SPLITS=parts.values.shape[2],
        BLOCK=POSITIONS_TILE, num_warps=2,
    )  # fmt: skip
