"""Triton kernels that choose the masked positions of a step: which are projected, and which are committed.

Safe to capture in a CUDA graph. Shapes: U units (a unit is one block of one row) of W columns, N = U·W positions, S
steps, T tokens of the canvas.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3llada.sampling.cuda.proposal_kernel import Proposals

COLUMNS_TILE = 64  # columns of a program, and columns that they are compared with at a time
MASKED_TILE = 1024


@triton.jit
def _ahead(values_ptr, first, value, w, width, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """How many columns of a unit have a larger value, or the same further to the left: [BLOCK] int32."""
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, width, TILE):
        o = start + tl.arange(0, TILE)
        other = tl.load(values_ptr + first + o, mask=o < width, other=float("-inf"))[None, :]
        ahead = (other > value[:, None]) | ((other == value[:, None]) & (o[None, :] < w[:, None]))
        count += tl.sum(ahead.to(tl.int32), 1)
    return count


@triton.jit
def _largest(values_ptr, first, width, TILE: tl.constexpr):
    """The largest value of a unit's columns."""
    most = tl.full((TILE,), float("-inf"), tl.float64)
    for start in range(0, width, TILE):
        o = start + tl.arange(0, TILE)
        most = tl.maximum(most, tl.load(values_ptr + first + o, mask=o < width, other=float("-inf")))
    return tl.max(most, 0)


@triton.jit
def _less_entropy(entropy_ptr, first, value, w, width, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """The summed entropy of a unit's columns with less, or with the same further to the left: [BLOCK] float64."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, width, TILE):
        o = start + tl.arange(0, TILE)
        other = tl.load(entropy_ptr + first + o, mask=o < width, other=float("inf"))[None, :]
        before = (other < value[:, None]) | ((other == value[:, None]) & (o[None, :] < w[:, None]))
        total += tl.sum(tl.where(before, other, 0.0), 1)
    return total


@triton.jit(do_not_specialize=["width", "steps"])
def _commit(
    tokens_ptr, log_probs_ptr, scores_ptr, entropy_ptr, canvas_ptr, masked_ptr, taken_ptr, confidence_ptr,
    origins_ptr, counts_ptr, steps_ptr, knobs_ptr, width, steps,
    UNMASK: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Choose among some of the masked positions of a unit, as `qwen3llada.sampling.unmasking`, and commit."""
    unit = tl.program_id(0).to(tl.int64)
    w = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = w < width
    first = unit * width
    masked = tl.load(masked_ptr + first + w, mask=keep, other=0) != 0
    log_prob = tl.load(log_probs_ptr + first + w, mask=keep, other=float("-inf"))
    score = tl.load(scores_ptr + first + w, mask=keep, other=float("-inf"))
    confidence = tl.exp(log_prob)
    rank = _ahead(scores_ptr, first, score, w, width, BLOCK, TILE)
    bound = tl.load(knobs_ptr + 4 * tl.num_programs(0) + unit)
    if UNMASK == "fixed":
        step = tl.load(steps_ptr + unit)
        taken = masked & (rank < tl.load(counts_ptr + unit * steps + step, mask=step < steps, other=0))
    elif UNMASK == "threshold":
        taken = masked & ((rank < 1) | (confidence > bound))
    else:
        if UNMASK == "factor":
            # The left side grows with the rank, so the positions that fit are the first ones.
            sure = _ahead(log_probs_ptr, first, log_prob, w, width, BLOCK, TILE)
            fits = masked & ((sure + 2).to(tl.float64) * (1.0 - confidence) < bound)
            none = 2.0 * (1.0 - tl.exp(_largest(log_probs_ptr, first, width, TILE))) >= bound
        else:
            tl.static_assert(UNMASK == "entropy_bound")
            entropy = tl.load(entropy_ptr + first + w, mask=keep, other=float("inf"))
            fits = masked & (_less_entropy(entropy_ptr, first, entropy, w, width, BLOCK, TILE) < bound)
            none = bound <= 0.0
        taken = fits | (masked & (rank < tl.where(none, 1, 0)))
    token = tl.load(tokens_ptr + first + w, mask=keep, other=0).to(tl.int64)
    tl.store(canvas_ptr + tl.load(origins_ptr + unit) + w, token, mask=taken)
    tl.store(masked_ptr + first + w, (masked & ~taken).to(tl.uint8), mask=keep)
    tl.store(taken_ptr + first + w, taken.to(tl.uint8), mask=keep)
    tl.store(confidence_ptr + first + w, confidence.to(tl.float32), mask=taken)


def commit_proposals(
    proposals: Proposals,
    canvas: Tensor,
    masked: Tensor,
    taken: Tensor,
    confidence: Tensor,
    origins: Tensor,
    counts: Tensor,
    steps: Tensor,
    knobs: Tensor,
    *,
    unmask: str,
) -> None:
    """Commit the proposed tokens that the way of unmasking chooses, in place.

    Args:
        canvas: int64, of any shape. The block of a unit starts at element `origins` [U] int64.
        masked, taken: [U, W] bool. confidence: [U, W] float32, set at the committed positions.
        counts: [U, S] integers, positions to commit in each step. steps: [U], entries of `counts` for this step.
        knobs: [5, U] float64, see `logits_kernel.Knob`.
    """
    units, width = masked.shape
    block = min(COLUMNS_TILE, triton.next_power_of_2(width))
    _commit[(units, triton.cdiv(width, block))](
        *proposals, canvas, masked.view(torch.uint8), taken.view(torch.uint8), confidence,
        origins, counts, steps, knobs, width, counts.shape[1],
        UNMASK=unmask, BLOCK=block, TILE=block, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["positions", "width", "queries", "offset", "tokens", "room"])
def _choose_masked(
    masked_ptr, places_ptr, rows_ptr, column_ptr, positions, width, queries, offset, tokens, room,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The masked positions in order, and their rows among the tokens of the model's input."""
    column = tl.load(column_ptr) + offset
    lane = tl.arange(0, BLOCK)
    before = 0
    for start in range(0, positions, BLOCK):
        n = start + lane
        masked = (tl.load(masked_ptr + n, mask=n < positions, other=0) != 0).to(tl.int32)
        target = before + tl.cumsum(masked, 0) - 1
        keep = (masked != 0) & (target < room)
        row = (n // width * queries + column + n % width).to(tl.int64)
        tl.store(places_ptr + target, n.to(tl.int64), mask=keep)
        tl.store(rows_ptr + target, row, mask=keep)
        if GUIDED:
            tl.store(rows_ptr + room + target, tokens + row, mask=keep)
        before += tl.sum(masked, 0)
    for start in range(0, room, BLOCK):  # unused slots repeat position 0
        n = start + lane
        unused = (n >= before) & (n < room)
        tl.store(places_ptr + n, tl.zeros((BLOCK,), tl.int64), mask=unused)
        tl.store(rows_ptr + n, column + tl.zeros((BLOCK,), tl.int64), mask=unused)
        if GUIDED:
            tl.store(rows_ptr + room + n, tokens + column + tl.zeros((BLOCK,), tl.int64), mask=unused)


def choose_masked(
    masked: Tensor, column: Tensor, room: int, *, queries: int, offset: int, guided: bool
) -> tuple[Tensor, Tensor]:
    """The positions to project to the vocabulary: places [room] among N, and rows [room or 2·room] among all tokens.

    Args:
        masked: [U, W] bool, at most `room` of them true. column: of the block in a unit's queries, a scalar on the
            device. offset: is added to it.
        queries: tokens of a unit in the model's input.
        guided: the rows of the pass with the prompt masked follow.
    """
    units, width = masked.shape
    places = torch.empty(room, dtype=torch.int64, device=masked.device)
    rows = torch.empty(room * (2 if guided else 1), dtype=torch.int64, device=masked.device)
    _choose_masked[(1,)](
        masked.view(torch.uint8), places, rows, column, masked.numel(), width, queries, offset, units * queries, room,
        GUIDED=guided, BLOCK=MASKED_TILE, num_warps=4,
    )  # fmt: skip
    return places, rows
