"""Which masked positions a step commits: how many, by which score, and the choice itself.

A row is decoded block by block. Shapes: U units (a unit is one block of one row), W columns of a block, N masked
positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from qwen3llada.errors import InputError

if TYPE_CHECKING:  # torch takes seconds to import; the parameters need only the names of the scores
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A token proposed for each of N masked positions, and the inputs of a score."""

    logits: Tensor  # [N, V] float32, -inf for the mask token
    log_prob: Tensor  # [N] float64, natural log of the softmax probability of the proposed token
    tail: Tensor  # [N] float64, (1 - p) / p of the most likely token's probability p
    noise: Tensor | None  # [N] float64 in (0, 1), keyed; drawn only for scores that are `noisy`
    temperature: Tensor  # [N] float64, annealed remasking temperature of this step

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the softmax distribution in nats, [N] float64."""
        import torch

        return torch.special.entr(torch.softmax(self.logits, -1)).sum(-1).double()

    @property
    def uniform(self) -> Tensor:
        """Uniform keyed noise in (0, 1), [N] float64. Raises: ValueError if the score is not entered as noisy."""
        if self.noise is None:
            raise ValueError("a score that reads `uniform` must be entered in SCORES with noisy=True")
        return self.noise


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a proposal is scored: [N] float64; the highest are committed first.

    noisy: whether the score reads `uniform`. logarithmic: whether it is a logarithm already, so that
    `position_temperature` adds its noise to the score itself; else it is positive, and its logarithm is taken.
    """

    score: Callable[[Proposal], Tensor]
    noisy: bool = False
    logarithmic: bool = False


def low_confidence(proposal: Proposal) -> Tensor:
    """Log probability of the proposed token (LLaDA, arXiv 2502.09992). Same ranking as the probability."""
    return proposal.log_prob


def random(proposal: Proposal) -> Tensor:
    """Uniform random order (LLaDA's random remasking)."""
    return proposal.uniform


def random_topk(proposal: Proposal) -> Tensor:
    """Log probability plus annealed Gumbel noise (MaskGIT, arXiv 2202.04200, its `mask_by_random_topk`)."""
    from qwen3llada.sampling.keyed_gumbel import gumbel

    return proposal.log_prob + proposal.temperature * gumbel(proposal.uniform)


def entropy(proposal: Proposal) -> Tensor:
    """Negative entropy of the softmax distribution, in nats: a mean of log probabilities."""
    return -proposal.entropy


def margin(proposal: Proposal) -> Tensor:
    """Probability of the most likely token minus that of the second."""
    top = proposal.logits.topk(2, -1).values.double()
    return (1 - (top[:, 1] - top[:, 0]).exp()) / (1 + proposal.tail)


SCORES: dict[str, Score] = {
    "low_confidence": Score(score=low_confidence, logarithmic=True),
    "random": Score(score=random, noisy=True),
    "random_topk": Score(score=random_topk, noisy=True, logarithmic=True),
    "entropy": Score(score=entropy, logarithmic=True),
    "margin": Score(score=margin),
}


def drawn(score: Tensor, entry: Score, uniform: Tensor, temperature: float) -> Tensor:
    """The score with which positions are drawn at random: its logarithm + temperature · Gumbel noise. [N] float64.

    The best of such scores is a draw from softmax(log score / temperature): Dream's `alg_temp` (arXiv 2508.15487).

    Args:
        uniform: [N] float64 keyed noise in (0, 1).
    """
    import torch

    from qwen3llada.sampling.keyed_gumbel import gumbel

    # A margin may be 0. Its score must stay above that of positions that are not masked, -inf.
    log = score if entry.logarithmic else score.clamp(min=torch.finfo(score.dtype).tiny).log()
    return log + temperature * gumbel(uniform)


def even_shares(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` integers that differ by at most one, larger ones first (LLaDA's transfer schedule)."""
    base, extra = divmod(total, parts)
    return [base + (i < extra) for i in range(parts)]


@dataclass(frozen=True)
class UnmaskPlan:
    """Number of positions that each block commits in each of its steps, per row. B rows, J blocks, S steps."""

    counts: Tensor  # [B, J, S] int64, 0 after a block's last step
    shares: Tensor  # [B, J] int64, steps of each block; 0 if it has nothing to decode

    @classmethod
    def of(cls, masked: Tensor, steps: int) -> UnmaskPlan:
        """Split `steps` over the blocks with masks, and each block's masks over its steps.

        Args:
            masked: [B, J] number of masked positions in each block.
            steps: forward passes for a whole row.

        Raises:
            InputError: a row has more blocks to decode than steps.
        """
        import torch

        table = masked.tolist()
        most = max((sum(n > 0 for n in row) for row in table), default=0)
        if steps < most:
            raise InputError(f"{steps=} must be at least the number of blocks to decode, {most}")
        shares, plans = [], []
        for row in table:
            spread = iter(even_shares(steps, sum(n > 0 for n in row)) if any(row) else [])
            share = [next(spread) if n > 0 else 0 for n in row]
            shares.append(share)
            # A block with more steps than masks commits one mask per step. Surplus steps are left out of the list, so
            # that the plan never grows beyond the number of masks.
            plans.append([even_shares(n, min(n, s)) if s else [] for n, s in zip(row, share, strict=True)])
        longest = max((len(plan) for row in plans for plan in row), default=0)
        padded = [[plan + [0] * (longest - len(plan)) for plan in row] for row in plans]
        return cls(torch.tensor(padded, dtype=torch.int64), torch.tensor(shares, dtype=torch.int64))


def annealed(temperature: float, step: Tensor | int, shares: Tensor) -> Tensor:
    """Remasking temperature at `step` (from 0) for blocks of `shares` steps: linear, 0 at a block's last step.

    As in MaskGIT (arXiv 2202.04200): temperature · (1 - (step + 1) / shares). Float64, shape of `shares`.
    """
    return temperature * (1 - (step + 1) / shares.clamp(min=1).double()).clamp(min=0)


def ranks(score: Tensor) -> Tensor:
    """Rank of each position within its unit, [U, W] int64: 0 has the highest score. Ties go to the left."""
    import torch

    order = score.argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )


def commit(score: Tensor, masked: Tensor, counts: Tensor, confidence: Tensor, threshold: float | None) -> Tensor:
    """Positions to commit now: bool [U, W].

    Args:
        score: [U, W] float64. Values at unmasked positions are ignored.
        masked: [U, W] bool, positions still to be decoded.
        counts: [U], number of positions to commit under fixed unmasking.
        confidence: [U, W] probability of the proposed token.
        threshold: None for fixed unmasking. Otherwise `counts` is ignored: every position with a higher confidence is
            committed, and always the one with the best score (Fast-dLLM, arXiv 2505.22618).
    """
    import torch

    rank = ranks(score.masked_fill(~masked, -torch.inf))
    if threshold is None:
        return masked & (rank < counts[:, None])
    return masked & ((rank < 1) | (confidence > threshold))
