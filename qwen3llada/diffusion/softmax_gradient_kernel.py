"""Cross-entropies and the gradient of a chunk of logits on a GPU: one Triton kernel, one program a row.

It reads a row twice and writes it once. What torch.compile makes of the same formula reads it three times.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES, EACH = 1024, 8  # columns of a step: each lane takes so many neighbouring ones
WARPS, STAGES = 32, 4  # the fastest of 15 choices on an H100
NOTHING = tl.constexpr(-1.0e30)  # less than any logit; unlike -inf, NOTHING - NOTHING is 0 and not NaN
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["targets_ptr", "scale_ptr"])
def _softmax_gradient(
    logits_ptr, targets_ptr, scale_ptr, losses_ptr, rows, vocabulary,
    SMOOTHING: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One row of `softmax_gradient_`.

    Each lane has a maximum and a sum of its own until the row is read (online softmax, Milakov and Gimelshein, arXiv
    1805.02867).
    """
    row = tl.program_id(0)
    at = logits_ptr + row.to(tl.int64) * vocabulary
    target, scale = tl.load(targets_ptr + row), tl.load(scale_ptr + row)
    kind = scale.dtype
    column = tl.arange(0, LANES)[:, None] * EACH + tl.arange(0, EACH)[None, :]
    top, total = tl.full([LANES], NOTHING, kind), tl.zeros([LANES], kind)
    plain = tl.zeros([LANES], kind)
    for start in tl.range(0, vocabulary, LANES * EACH, num_stages=STAGES):
        there = start + column < vocabulary
        x = tl.load(at + start + column, mask=there, other=-float("inf")).to(kind)
        higher = tl.maximum(top, tl.max(x, 1))
        total = total * tl.exp2((top - higher) * LOG2_E) + tl.sum(tl.exp2((x - higher[:, None]) * LOG2_E), 1)
        top = higher
        if SMOOTHING > 0:
            plain += tl.sum(tl.where(there, x, 0.0), 1)
    highest = tl.max(top, 0)
    total_of_row = tl.sum(total * tl.exp2((top - highest) * LOG2_E), 0)
    log_total = tl.log(total_of_row)
    at_target = tl.load(at + target).to(kind) - highest
    cross_entropy = log_total - at_target
    per_class = SMOOTHING / tl.cast(vocabulary, kind)
    smoothed = cross_entropy
    if SMOOTHING > 0:
        smoothed += SMOOTHING * (at_target - (tl.sum(plain, 0) / vocabulary - highest))
    tl.store(losses_ptr + row, cross_entropy)
    tl.store(losses_ptr + rows + row, smoothed)
    of_target = scale * (tl.exp2(at_target * LOG2_E) / total_of_row - per_class - (1.0 - SMOOTHING))
    factor = scale / total_of_row
    tl.debug_barrier()  # every thread has read the target's logit before one overwrites it
    for start in tl.range(0, vocabulary, LANES * EACH, num_stages=STAGES):
        there = start + column < vocabulary
        x = tl.load(at + start + column, mask=there, other=0.0).to(kind)
        gradient = tl.exp2((x - highest) * LOG2_E) * factor - scale * per_class
        gradient = tl.where(start + column == target, of_target, gradient)
        tl.store(at + start + column, gradient.to(logits_ptr.dtype.element_ty), mask=there)


def softmax_gradient_(logits: Tensor, targets: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    """Overwrite logits [n, V], contiguous, by scale·d(loss)/d(logits).

    Args:
        targets: [n] int64. scale: [n] in the type of sums, float32 or float64. smoothing: see `fused_cross_entropy`.

    Returns: [2, n]: cross-entropies, plain and smoothed.
    """
    losses = torch.empty(2, len(logits), dtype=scale.dtype, device=logits.device)
    _softmax_gradient[(len(logits),)](
        logits, targets, scale, losses, len(logits), logits.shape[1],
        SMOOTHING=smoothing, LANES=LANES, EACH=EACH, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return losses
