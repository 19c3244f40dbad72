"""How many masked positions a step commits.

To add a way, write a function that chooses positions from `Candidates`, and enter it in `UNMASKING` with the knob that
it reads. Shapes: U units (a unit is one block of one row), W columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen3llada.sampling.remasking import commit, ranks

if TYPE_CHECKING:  # torch takes seconds to import; the parameters need only the names
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The masked positions of a step. Values at other positions are ignored."""

    masked: Tensor  # [U, W] bool, positions still to be decoded
    score: Tensor  # [U, W] float64, see `SCORES`
    counts: Tensor  # [U] int64, this step's share under fixed unmasking
    confidence: Tensor  # [U, W] float64, probability of the proposed token
    entropy: Tensor | None  # [U, W] float64, nats; given for the ways that are entered with `entropy=True`


@dataclass(frozen=True, kw_only=True)
class Unmasking:
    """A way to choose the positions that a step commits.

    choose: (candidates, value of the knob) -> bool [U, W], at least one position of each unit with masks.
    knob: the sampler's parameter that says how sure a position must be. None: `Candidates.counts` alone decides how
        many, so that the number of steps is known in advance.
    entropy: whether it reads `Candidates.entropy`.
    """

    choose: Callable[[Candidates, float], Tensor]
    knob: str | None = None
    entropy: bool = False


def fixed(candidates: Candidates, value: float) -> Tensor:
    """The best of the step's even share (LLaDA, arXiv 2502.09992)."""
    return commit(candidates.score, candidates.masked, candidates.counts, candidates.confidence, None)


def threshold(candidates: Candidates, value: float) -> Tensor:
    """All with a probability above `value`, and the best by score (Fast-dLLM, arXiv 2505.22618)."""
    return commit(candidates.score, candidates.masked, candidates.counts, candidates.confidence, value)


def factor(candidates: Candidates, value: float) -> Tensor:
    """The n most probable, n the largest with (n + 1)(1 - p_n) < `value`; if there is none, the best by score.

    p_n is the n-th largest probability of a proposed token. Fast-dLLM's dynamic threshold (arXiv 2505.22618).
    """
    import torch

    confidence = candidates.confidence.masked_fill(~candidates.masked, -torch.inf)
    sure = confidence.sort(dim=-1, descending=True).values
    n = torch.arange(1, sure.shape[-1] + 1, device=sure.device)
    fits = ((n + 1) * (1 - sure) < value).sum(-1)  # the left side grows with n, so those that fit come first
    return _first(ranks(confidence), fits, candidates)


def entropy_bound(candidates: Candidates, value: float) -> Tensor:
    """The n of least entropy, n the largest for which their sum without the largest of them is below `value`.

    The best by score if `value` is 0. Ben-Hamu et al., arXiv 2505.24857.
    """
    import torch

    assert candidates.entropy is not None
    entropy = candidates.entropy.masked_fill(~candidates.masked, torch.inf)
    least = entropy.sort(dim=-1).values
    before = least.cumsum(-1).roll(1, -1)  # the sum of those of less entropy
    before[:, 0] = 0
    fits = ((before < value) & least.isfinite()).sum(-1)
    return _first(ranks(-entropy), fits, candidates)


def _first(rank: Tensor, count: Tensor, candidates: Candidates) -> Tensor:
    """The first `count` [U] positions by `rank` [U, W]; where that is none, the best by score."""
    best = commit(candidates.score, candidates.masked, count.new_ones(count.shape), candidates.confidence, None)
    return (candidates.masked & (rank < count[:, None])) | (best & (count == 0)[:, None])


UNMASKING: dict[str, Unmasking] = {
    "fixed": Unmasking(choose=fixed),
    "threshold": Unmasking(choose=threshold, knob="confidence_threshold"),
    "factor": Unmasking(choose=factor, knob="factor"),
    "entropy_bound": Unmasking(choose=entropy_bound, knob="entropy_bound", entropy=True),
}
