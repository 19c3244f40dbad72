"""Cross-entropies of a vocabulary projection on a CPU where no gradient is wanted, by tiles of the vocabulary."""

import torch
from torch import Tensor

# Elements of the logits that exist at once. They stay in the processor's cache, where the softmax finds them.
ROWS, COLUMNS = 2048, 2048


def tiled_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropies [2, N] of `hidden @ weight.T`, plain and smoothed (see `fused_cross_entropy`).

    The sum over the vocabulary is kept relative to the largest logit of the first tile, or, where that overflows, to
    the largest seen so far (Milakov and Gimelshein, arXiv 1805.02867, algorithm 3). It has the dtype of the operands.

    Args:
        hidden: [N, D], float32 or float64.
        weight: [V, D], same dtype.
        targets: [N] int64.
        smoothing: the share of the loss that goes to all V classes alike.
    """
    losses = hidden.new_zeros(2, len(hidden))
    buffer = hidden.new_empty(min(ROWS, len(hidden)) * min(COLUMNS, len(weight)))
    for start in range(0, len(hidden), ROWS):
        rows = slice(start, start + ROWS)
        losses[:, rows] = _of_rows(hidden[rows], weight, targets[rows], smoothing, buffer)
    return losses


def _of_rows(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, buffer: Tensor) -> Tensor:
    found = _sums_of_rows(hidden, weight, targets, smoothing, buffer, follow=False)
    # Looking for the largest logit of each tile takes a tenth of the time. That of the first tile mostly does: only if
    # another is larger by 88 (in float32), its exponential overflows.
    return (
        found if found[0].isfinite().all() else _sums_of_rows(hidden, weight, targets, smoothing, buffer, follow=True)
    )


def _sums_of_rows(
    hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, buffer: Tensor, *, follow: bool
) -> Tensor:
    """follow: take the sum relative to the largest logit so far, not to that of the first tile."""
    count, vocab = len(hidden), len(weight)
    largest = hidden.new_full((count,), -torch.inf)
    total, at_target, summed = hidden.new_zeros(3, count)
    for start in range(0, vocab, COLUMNS):
        part = weight[start : start + COLUMNS]
        logits = torch.mm(hidden, part.t(), out=buffer[: count * len(part)].view(count, len(part)))
        place = targets - start
        here = (place >= 0) & (place < len(part))
        found = logits.gather(1, place.clamp(0, len(part) - 1)[:, None]).squeeze(1)
        at_target = torch.where(here, found, at_target)
        if smoothing:
            summed += logits.sum(1)
        if follow or start == 0:
            before, largest = largest, torch.maximum(largest, logits.amax(1))
            total = total * (before - largest).exp()
        total = total + logits.sub_(largest[:, None]).exp_().sum(1)
    normalizer = largest + total.log()
    plain = normalizer - at_target
    return torch.stack((plain, torch.lerp(plain, normalizer - summed / vocab, smoothing) if smoothing else plain))
