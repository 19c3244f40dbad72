"""The loss of post-training: PPO's clipped surrogate for each predicted token, and the divergence from the first model.

Shapes: B rows of a micro-batch, N predicted tokens, T rows of the step's table (one for each pass over a rollout),
G columns of an answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qwen3llada.batches.batch import Batch
from qwen3llada.batches.source import Step
from qwen3llada.diffusion.corruption import Noised
from qwen3llada.objective.batch_loss import BatchLoss, LossSum
from qwen3llada.objective.prepared import Prepared, to_device


@dataclass(frozen=True, kw_only=True)
class PolicyBatch(Batch):
    """A micro-batch of passes over rollouts."""

    predicted: Tensor  # [B, L] float32, 1 at the positions in the loss
    rows: Tensor  # [B] int64, numbers in the step's table
    advantages: Tensor  # [B] float32
    first: bool  # whether this is the first update on these rollouts
    figure_scale: float  # tokens of the step, over those that are computed: others have no gradient and are left out


@dataclass(frozen=True)
class PolicyStep(Step):
    """An optimiser step on rollouts."""

    loss_tokens: int = 0  # predicted tokens of all passes over all rollouts, on all ranks


@dataclass
class Remembered:
    """Log-probabilities [T·G] by row of the table and column of the answer, 0 where nothing is predicted."""

    old: Tensor | None = None  # before the first update
    reference: Tensor | None = None  # of the first model
    columns: int = 0  # G
    gathered: bool = False  # whether they are those of all ranks

    def forget(self, rows: int, columns: int, device: torch.device, *, reference: bool) -> None:
        """Make room for a new table."""
        self.old = torch.zeros(rows * columns, device=device)
        self.reference = torch.zeros(rows * columns, device=device) if reference else None
        self.columns, self.gathered = columns, False

    def gather(self, total: Callable[[Tensor], Tensor]) -> None:
        """Sum over ranks by `total`. Each rank knows the rows that it computed, and has 0 in the others."""
        self.old = None if self.old is None else total(self.old)
        self.reference = None if self.reference is None else total(self.reference)
        self.gathered = True


class Terms(NamedTuple):
    """Of each predicted token, [N]."""

    loss: Tensor
    kl_to_rollouts: Tensor
    kl_to_reference: Tensor
    clipped: Tensor  # 1 where clipping removes the gradient


def k3(log_probs: Tensor, other: Tensor) -> Tensor:
    """exp(q - p) - (q - p) - 1 >= 0 of log-probabilities p and q, [N]: its mean under p estimates KL(p, q).

    Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    difference = other - log_probs
    return difference.exp() - difference - 1


def policy_terms(
    log_probs: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl: float,
    ratio: bool = True,
) -> Terms:
    """-min(ratio·A, clip(ratio, 1 - clip_low, 1 + clip_high)·A) + kl·k3, of each token.

    PPO (arXiv 1707.06347), with the two bounds of DAPO (arXiv 2503.14476). `ratio=False`: -A·log-probability in place
    of the first term, the cross-entropy of the answers whose A is 1. All tensors [N]; the gradient goes to `log_probs`.
    """
    now = log_probs.detach()
    zero = torch.zeros_like(now)
    divergence = zero if reference is None else k3(log_probs, reference)
    if not ratio:
        return Terms(kl * divergence - advantages * log_probs, k3(now, old), divergence.detach(), zero)
    ratios = (log_probs - old).exp()
    bounded = ratios.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratios * advantages, bounded * advantages)
    past = torch.where(advantages > 0, ratios > 1 + clip_high, ratios < 1 - clip_low) & (advantages != 0)
    return Terms(kl * divergence - surrogate, k3(now, old), divergence.detach(), past.float())


@dataclass(frozen=True, kw_only=True)
class PolicyLoss(BatchLoss):
    """From a micro-batch of passes to its loss."""

    clip_low: float
    clip_high: float
    kl: float
    ratio: bool  # False: cross-entropy of the kept answers
    remembered: Remembered = field(default_factory=Remembered)

    @property
    def figure_names(self) -> tuple[str, ...]:
        reference = ("kl_to_reference",) if self.kl > 0 else ()
        return ("entropy", "kl_to_rollouts", "clip_fraction", *reference)

    def denominator(self, step: Step) -> float:
        assert isinstance(step, PolicyStep)
        return max(1.0, float(step.loss_tokens))

    def __call__(self, objective: nn.Module, batch: Batch) -> LossSum:
        assert isinstance(batch, PolicyBatch)
        log_probs, entropy, prepared, at = self._log_probs(objective, batch)
        memory, detached = self.remembered, log_probs.detach()
        assert memory.old is not None
        if batch.first:  # the ratio is then exactly 1
            memory.old[at] = detached.to(memory.old.dtype)
        advantages = batch.advantages.to(self.device)[self._row_of(prepared)]
        terms = policy_terms(
            log_probs,
            detached if batch.first else memory.old[at],
            None if memory.reference is None else memory.reference[at],
            advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            kl=self.kl,
            ratio=self.ratio,
        )
        sums = [entropy.sum(), terms.kl_to_rollouts.sum(), terms.clipped.sum()]
        sums += [terms.kl_to_reference.sum()] if self.kl > 0 else []
        return LossSum(terms.loss.sum(), -detached, prepared, torch.stack(sums).detach() * batch.figure_scale)

    @torch.no_grad()
    def remember_reference(self, objective: nn.Module, batch: PolicyBatch) -> None:
        """Keep the log-probabilities by the first model's `objective`."""
        log_probs, _, _, at = self._log_probs(objective, batch)
        assert self.remembered.reference is not None
        self.remembered.reference[at] = log_probs.float()

    def _log_probs(self, objective: nn.Module, batch: PolicyBatch) -> tuple[Tensor, Tensor, Prepared, Tensor]:
        """Log-probabilities and entropies [N], the prepared batch, and the places [N] in `Remembered`."""
        prepared = self.prepare(batch)
        at = self._places(prepared, batch).to(self.device, non_blocking=True)
        prepared = to_device(prepared, self.device)
        log_probs, entropy = self.compute(objective, prepared, return_log_probs=True)
        return log_probs, entropy, prepared, at

    def _row_of(self, prepared: Prepared) -> Tensor:
        """Row of the micro-batch of each predicted token, [N]."""
        return prepared.positions // prepared.targets.shape[1]

    def _places(self, prepared: Prepared, batch: PolicyBatch) -> Tensor:
        """[N]: row of the table times G, plus column of the answer. On the CPU."""
        assert batch.prompt_lengths is not None
        rows, columns = self._row_of(prepared), prepared.positions % prepared.targets.shape[1]
        if prepared.corrupted and prepared.position_ids is not None:  # the copy holds the answer's blocks alone
            columns = prepared.position_ids.expand(len(prepared.tokens), -1)[rows, columns]
        return batch.rows[rows] * self.remembered.columns + columns - batch.prompt_lengths[rows]

    def _weights(self, batch: Batch, view: Noised) -> Tensor:
        """1 at the predicted positions [B, L]: what masks a position does not decide whether it is predicted."""
        assert isinstance(batch, PolicyBatch)
        return batch.predicted
