"""Training losses: a weight for the cross-entropy at each corrupted position, and the step's denominator.

The loss of an optimiser step is the sum of weight_i CE_i over all its micro-batches and ranks, divided by the sum of
their denominators. With one denominator for the whole step, the split into micro-batches and ranks does not matter.
To add a loss, write a function for its weights and enter it in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from qwen3llada.diffusion.corruption import Noised


@dataclass(frozen=True, kw_only=True)
class MaskedLoss:
    """A loss over corrupted positions. Calling it computes the plain form, from the logits of all positions.

    `weigh(noised, target [B, L] bool, sft, mask_token_id, reweight_cap)` returns the weights [B, L].
    `weighs_by_inverse_p`: whether the weights contain 1/p. If not, training forces a mask on sequences whose draw
    masks nothing. `by_sample`: divide by the number of samples, not of tokens, also in pretraining. `smoothed`: CE_i
    is label-smoothed.
    """

    weigh: Callable[..., Tensor]
    weighs_by_inverse_p: bool
    by_sample: bool = False
    smoothed: bool = False

    def token_weights(
        self,
        tokens: Tensor,
        noised: Noised,
        *,
        mask_token_id: int,
        valid: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        reweight_cap: float | None = None,
    ) -> Tensor:
        """Weight of the cross-entropy at each position, float32 [B, L]; 0 for positions outside the loss.

        `tokens` [B, L]: the clean tokens. `valid` [B, L] bool: real tokens, None = all. `prompt_lengths` [B]: given in
        SFT, None in pretraining. `reweight_cap`: upper bound of 1/p.
        """
        from qwen3llada.diffusion.corruption import maskable_positions

        target = maskable_positions(tokens, valid, prompt_lengths)
        sft = prompt_lengths is not None
        return self.weigh(noised, target, sft=sft, mask_token_id=mask_token_id, reweight_cap=reweight_cap)

    def step_denominator(self, *, tokens: int, samples: int, sft: bool) -> float:
        """Divisor of a step with `tokens` real tokens (without padding) and `samples` samples."""
        return float(samples if sft or self.by_sample else tokens)

    def denominator(
        self, tokens: Tensor, *, valid: Tensor | None = None, prompt_lengths: Tensor | None = None
    ) -> float:
        """This batch's share of the step's denominator. Rows of padding only do not count as samples."""
        batch, length = tokens.shape
        real_tokens = batch * length if valid is None else int(valid.sum())
        samples = batch if valid is None else int(valid.any(dim=1).sum())
        return self.step_denominator(tokens=real_tokens, samples=samples, sft=prompt_lengths is not None)

    def __call__(
        self,
        logits: Tensor,
        tokens: Tensor,
        noised: Noised,
        *,
        mask_token_id: int,
        valid: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        smoothing: float = 0.1,
        reweight_cap: float | None = None,
    ) -> Tensor:
        """The loss of a batch that is a whole step: a scalar, float32 (float64 for float64 logits).

        `logits` [B, L, V]; other arguments as in `token_weights`. `smoothing` in [0, 1) applies to smoothed losses.
        """
        weights = self.token_weights(
            tokens,
            noised,
            mask_token_id=mask_token_id,
            valid=valid,
            prompt_lengths=prompt_lengths,
            reweight_cap=reweight_cap,
        )
        chosen = weights != 0  # positions outside the loss get no gradient, even if their logits are infinite
        cross_entropy = smoothed_cross_entropy(logits[chosen], tokens[chosen], smoothing if self.smoothed else 0.0)
        denominator = self.denominator(tokens, valid=valid, prompt_lengths=prompt_lengths)
        return (weights[chosen] * cross_entropy).sum() / max(denominator, 1.0)


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """(1-s) CE_i + s mean_v(-log q_v), [N], of `logits` [N, V] and `targets` [N]. In float32 or wider."""
    import torch

    log_q = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    cross_entropy = -log_q.gather(-1, targets[:, None]).squeeze(-1)
    return cross_entropy if smoothing == 0 else (1 - smoothing) * cross_entropy - smoothing * log_q.mean(dim=-1)


def inverse_probability(
    noised: Noised, target: Tensor, *, sft: bool, mask_token_id: int, reweight_cap: float | None
) -> Tensor:
    """min(1/p, cap) at masked positions, in SFT divided by the answer length (LLaDA, arXiv 2502.09992, alg. 1 and 2).

    A position is masked with probability p, its own or its sequence's. So unless the cap applies, the mean weight is 1
    for every p.
    """
    weight = noised.p_by_position.float().reciprocal()  # [B, 1] or [B, L]
    if reweight_cap is not None:
        weight = weight.clamp(max=reweight_cap)
    if sft:
        weight = weight / target.sum(dim=1, keepdim=True).clamp(min=1)
    return weight * (noised.masked & target)


def mean_over_corrupted(
    noised: Noised, target: Tensor, *, sft: bool, mask_token_id: int, reweight_cap: float | None
) -> Tensor:
    """1 / max(1, corrupted positions of the sample): a mean per sequence, without 1/p (dLLM-RL's LLaDA objective).

    A position counts as corrupted if its noisy token is the mask token. In a row where noise replaced tokens by others
    (a masked position holds another id), the boolean mask decides instead.
    """
    is_mask_token = noised.tokens == mask_token_id
    replaced = (noised.masked & ~is_mask_token).any(dim=1, keepdim=True)
    corrupted = noised.masked.where(replaced, is_mask_token) & target
    return corrupted / corrupted.sum(dim=1, keepdim=True).clamp(min=1)


LOSSES: dict[str, MaskedLoss] = {
    "guidelines": MaskedLoss(weigh=inverse_probability, weighs_by_inverse_p=True),
    "dllm": MaskedLoss(weigh=mean_over_corrupted, weighs_by_inverse_p=False, by_sample=True),
    "soft_ce": MaskedLoss(weigh=inverse_probability, weighs_by_inverse_p=True, smoothed=True),
}
