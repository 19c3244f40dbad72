"""Triton kernels of greedy decoding: find the likeliest token of each row of logits, and commit the most confident.

They read the logits once, where argmax, log-sum-exp and comparison read them several times. Safe to capture in a CUDA
graph. Shapes: R rows of logits, V vocabulary, U units (a unit is one block of one row) of W columns, S steps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NOTHING = tl.constexpr(-1.0e30)  # less than any logit; unlike -inf, NOTHING - NOTHING is 0 and not NaN
VOCABULARY_TILE = 1024
VOCABULARY_SPLITS = 16  # programs per row of logits, so that a few rows already occupy all SMs


@triton.jit
def _likeliest(
    logits_ptr, rows_ptr, top_ptr, index_ptr, tail_ptr, vocab, part, mask_token,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For one part of a row: the largest logit, its token, and the sum of exp(logit - largest) over the others."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    end = tl.minimum((split + 1) * part, vocab)
    # Each lane keeps its own maximum and sum; they are merged at the end.
    top = tl.full((BLOCK,), NOTHING, tl.float32)
    tail = tl.zeros((BLOCK,), tl.float32)
    index = tl.zeros((BLOCK,), tl.int32)
    for start in range(split * part, end, BLOCK):
        v = start + lane
        x = tl.load(logits_ptr + row * vocab + v, mask=v < end, other=NOTHING).to(tl.float32)
        x = tl.where(v == mask_token, NOTHING, x)
        wins = x > top
        decay = tl.exp(-tl.abs(x - top))
        lost = tl.where(wins, tl.where(top > NOTHING, 1.0, 0.0), tl.where(x > NOTHING, decay, 0.0))
        tail = tl.where(wins, (tail + lost) * decay, tail + lost)
        index = tl.where(wins, v, index)
        top = tl.maximum(top, x)
    best = tl.max(top, 0)
    token = tl.min(tl.where(top == best, index, vocab), 0)  # the lowest token id wins a tie
    others = tl.where((top > NOTHING) & (index != token), 1.0, 0.0)
    at = tl.load(rows_ptr + row) * SPLITS + split
    tl.store(top_ptr + at, best)
    tl.store(index_ptr + at, token)
    tl.store(tail_ptr + at, tl.sum((tail + others) * tl.exp(top - best), 0))


def likeliest(logits: Tensor, rows: Tensor, mask_token: int, parts: tuple[Tensor, Tensor, Tensor]) -> None:
    """For each part of each row of logits [R, V]: the largest, its token, the sum of exp(logit - largest) of the rest.

    Results go to rows `rows` [R] int64 of `parts` (float32, int32, float32, each [·, VOCABULARY_SPLITS]). The mask
    token counts as -inf.
    """
    part = triton.cdiv(logits.shape[1], VOCABULARY_SPLITS)
    _likeliest[(logits.shape[0], VOCABULARY_SPLITS)](
        logits, rows, *parts, logits.shape[1], part, mask_token,
        SPLITS=VOCABULARY_SPLITS, BLOCK=min(VOCABULARY_TILE, triton.next_power_of_2(part)), num_warps=4,
    )  # fmt: skip


@triton.jit
def _commit_likeliest(
    top_ptr, index_ptr, tail_ptr, canvas_ptr, masked_ptr, taken_ptr, confidence_ptr,
    column_ptr, counts_ptr, step_ptr, threshold_ptr,
    canvas_stride, width, steps, FIXED: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge the parts of a unit's logits, rank the masked positions and commit the best."""
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
    # Odds against the token, used as the score: a smaller tail is a larger probability, so no logarithm is needed.
    tail = tl.sum(tails * tl.exp(part - top[:, None]), 1)
    masked = tl.load(masked_ptr + unit * width + w, mask=keep, other=0) != 0
    score = tl.where(masked, -tail, float("-inf"))
    # Rank each position by comparing all pairs of scores.
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
    """Commit the likeliest tokens of each unit, in place: greedy decoding with the score `low_confidence`.

    Args:
        parts: results of `likeliest`, each [U·W, VOCABULARY_SPLITS].
        canvas: [U, Q] int64. The block starts at `column`, a scalar on the device.
        masked, taken: [U, W] bool. confidence: [U, W] float32, set at the committed positions.
        counts: [U, S] int32, positions to commit in each step. step: number of this step, a scalar on the device.
        threshold: unless `fixed`, every position with a higher confidence is committed.
    """
    units, width = masked.shape
    _commit_likeliest[(units,)](
        *parts, canvas, masked.view(torch.uint8), taken.view(torch.uint8), confidence,
        column, counts, step, threshold, canvas.shape[1], width, counts.shape[1],
        FIXED=fixed, SPLITS=VOCABULARY_SPLITS, BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
