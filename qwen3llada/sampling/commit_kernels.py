"""Triton kernels of greedy decoding: the likeliest token of each row of logits, and which of them to commit.

One pass over the logits instead of the several that argmax, log-sum-exp and comparison take. Safe to capture in a CUDA
graph. Shapes: R rows of logits, V vocabulary, U units (a unit is one block of one row) of W columns, S steps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NOTHING = tl.constexpr(-1.0e30)  # a logit below all others that, unlike -inf, can be subtracted from itself
VOCABULARY_TILE = 2048
SPLITS = 16  # programs that share a row of logits, so that a few rows already fill the machine


@triton.jit
def _likeliest(
    logits_ptr, top_ptr, index_ptr, tail_ptr, vocab, part, mask_token, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest logit of one part of a row, where it is, and the sum of exp(logit - largest) of all others there."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    end = tl.minimum((split + 1) * part, vocab)
    top = tl.full((), NOTHING, tl.float32)
    tail = tl.zeros((), tl.float32)
    index = tl.zeros((), tl.int32)
    for start in range(split * part, end, BLOCK):
        v = start + lane
        x = tl.load(logits_ptr + row * vocab + v, mask=v < end, other=NOTHING).to(tl.float32)
        x = tl.where(v == mask_token, NOTHING, x)
        here, at = tl.max(x, 0, return_indices=True)
        rest = tl.sum(tl.where((lane == at) | (x <= NOTHING), 0.0, tl.exp(x - here)), 0)
        wins = here > top
        higher = tl.maximum(top, here)
        # Whichever of the two loses joins the others.
        tail = (tail + tl.where(wins & (top > NOTHING), 1.0, 0.0)) * tl.exp(top - higher)
        tail += (rest + tl.where(~wins & (here > NOTHING), 1.0, 0.0)) * tl.exp(here - higher)
        index = tl.where(wins, (start + at).to(tl.int32), index)
        top = higher
    tl.store(top_ptr + row * SPLITS + split, top)
    tl.store(index_ptr + row * SPLITS + split, index)
    tl.store(tail_ptr + row * SPLITS + split, tail)


def likeliest(logits: Tensor, mask_token: int, top: Tensor, index: Tensor, tail: Tensor) -> None:
    """For each part of each row of logits [R, V]: the largest, its token, the sum of exp(logit - largest) of the rest.

    Written to top [R, SPLITS] float32, index int32, tail float32. The mask token's logit counts as -inf.
    """
    part = triton.cdiv(logits.shape[1], SPLITS)
    _likeliest[(logits.shape[0], SPLITS)](
        logits, top, index, tail, logits.shape[1], part, mask_token,
        SPLITS=SPLITS, BLOCK=min(VOCABULARY_TILE, triton.next_power_of_2(part)), num_warps=4,
    )  # fmt: skip


@triton.jit
def _commit_likeliest(
    top_ptr, index_ptr, tail_ptr, canvas_ptr, masked_ptr, taken_ptr, confidence_ptr,
    column_ptr, counts_ptr, step_ptr, threshold_ptr,
    canvas_stride, width, steps, FIXED: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge the parts of a unit's logits, rank its masked positions, commit the best."""
    unit = tl.program_id(0).to(tl.int64)
    w = tl.arange(0, BLOCK)
    split = tl.arange(0, SPLITS)
    keep = w < width
    at = (unit * width + w)[:, None] * SPLITS + split[None, :]
    part = tl.load(top_ptr + at, mask=keep[:, None], other=NOTHING)
    top, winner = tl.max(part, 1, return_indices=True)
    first = split[None, :] == winner[:, None]
    token = tl.sum(tl.where(first, tl.load(index_ptr + at, mask=keep[:, None], other=0), 0), 1)
    tails = tl.load(tail_ptr + at, mask=keep[:, None], other=0.0) + tl.where(first | (part <= NOTHING), 0.0, 1.0)
    # Odds against the token. Its logarithm is not needed: a smaller tail is a larger probability.
    tail = tl.sum(tails * tl.exp(part - top[:, None]), 1)
    masked = tl.load(masked_ptr + unit * width + w, mask=keep, other=0) != 0
    score = tl.where(masked, -tail, float("-inf"))
    # As a column and as a row: comparing all pairs gives each position's rank.
    tl.static_assert(BLOCK <= 1024)
    ahead = (score[None, :] > score[:, None]) | ((score[None, :] == score[:, None]) & (w[None, :] < w[:, None]))
    rank = tl.sum(ahead.to(tl.int32), 1)
    confidence = 1.0 / (1.0 + tail)
    if FIXED:
        step = tl.load(step_ptr)
        count = tl.load(counts_ptr + unit * steps + step, mask=step < steps, other=0)
        taken = masked & (rank < count)
    else:
        taken = masked & ((rank < 1) | (confidence > tl.load(threshold_ptr)))
    column = tl.load(column_ptr)
    tl.store(canvas_ptr + unit * canvas_stride + column + w, token.to(tl.int64), mask=taken)
    tl.store(masked_ptr + unit * width + w, (masked & ~taken).to(tl.uint8), mask=keep)
    tl.store(taken_ptr + unit * width + w, taken.to(tl.uint8), mask=keep)
    tl.store(confidence_ptr + unit * width + w, confidence, mask=taken)


def commit_likeliest(
    parts: tuple[Tensor, Tensor, Tensor],
    canvas: Tensor,
    masked: Tensor,
    taken: Tensor,
    confidence: Tensor,
    column: Tensor,
    counts: Tensor,
    step: Tensor,
    threshold: Tensor,
    *,
    fixed: bool,
) -> None:
    """Commit the likeliest tokens of each unit, in place: greedy decoding by the score `low_confidence`.

    Args:
        parts: what `likeliest` found, each [U·W, SPLITS].
        canvas: [U, Q] int64, in which the block starts at `column` (a number on the device).
        masked, taken: [U, W] bool. confidence: [U, W] float32, set where something is taken.
        counts: [U, S] int32, positions to commit in each step; step: number of the step, on the device.
        threshold: confidence above which everything is committed where not `fixed`.
    """
    units, width = masked.shape
    _commit_likeliest[(units,)](
        *parts, canvas, masked.view(torch.uint8), taken.view(torch.uint8), confidence,
        column, counts, step, threshold, canvas.shape[1], width, counts.shape[1],
        FIXED=fixed, SPLITS=SPLITS, BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
