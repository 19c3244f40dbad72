"""Committed tokens that change again before their block is finished: edits, and ReMDM's loop.

Edits (LLaDA2.1's token-to-token, SGLang's JointThreshold): in each pass a committed token is replaced where another
one has become the likeliest, with enough probability. A block without masks gets some more passes for that.

The loop (ReMDM, Wang et al., arXiv 2503.00307, the form that they run on LLaDA): once most of a block is committed,
each step of the loop masks the least sure tokens again and commits as many, so that the number of masks stays. Then
the block goes on as planned.

Shapes: U units (a unit is one block of one row), W columns of a block, S steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.remasking import ranks


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What each step of fixed unmasking does, per unit, on the CPU."""

    counts: Tensor  # [U, S] int64, positions to commit
    again: Tensor  # [U, S] int64, tokens to mask again before the step's pass
    shares: Tensor  # [U] int64, number of steps of the block, over which the remasking temperature fades


def with_loop(counts: Tensor, shares: Tensor, params: DecodeParams) -> StepPlan:
    """The plan of units with ReMDM's loop inserted, if `params.remask` asks for it.

    Args:
        counts: [U, S] int64, positions to commit without the loop. shares: [U] int64, steps without the loop.
    """
    if not params.remask:
        return StepPlan(counts=counts, again=torch.zeros_like(counts), shares=shares)
    plans = [_looped([n for n in row if n], params) for row in counts.tolist()]
    longest = max((len(commits) for commits, _ in plans), default=0)
    table = torch.tensor([[part + [0] * (longest - len(part)) for part in plan] for plan in plans], dtype=torch.int64)
    added = (table[:, 0] > 0).sum(-1) - (counts > 0).sum(-1)
    return StepPlan(counts=table[:, 0], again=table[:, 1], shares=shares + added)


def _looped(counts: list[int], params: DecodeParams) -> tuple[list[int], list[int]]:
    """Positions to commit and tokens to mask again in each step of one block."""
    if not counts:
        return [], []
    begin = 1  # the first step after which enough is committed
    while sum(counts[:begin]) < params.remask_start * sum(counts):
        begin += 1
    steps = params.remask_steps or len(counts)
    loop = [min(params.remask, sum(counts[:begin]))] * steps
    again = [0] * begin + loop + [0] * (len(counts) - begin)
    return counts[:begin] + loop + counts[begin:], again


def least_sure(log_prob: Tensor, committed: Tensor, counts: Tensor) -> Tensor:
    """The `counts` [U] committed positions of the least probability when committed: bool [U, W]. Ties go to the left.

    Args:
        log_prob: [U, W] float64, log probability of each token when it was committed.
        committed: [U, W] bool.
    """
    return committed & (ranks((-log_prob).masked_fill(~committed, -torch.inf)) < counts[:, None])


def outdated(tokens: Tensor, best: Tensor, log_prob: Tensor, committed: Tensor, threshold: float) -> Tensor:
    """Committed positions whose likeliest token is another one, with a probability above `threshold`: bool [U, W].

    Args:
        tokens, best: [U, W] int64, the tokens now and the likeliest ones. log_prob: [U, W] float64, of the likeliest.
    """
    return committed & (best != tokens) & (log_prob.exp() > threshold)
