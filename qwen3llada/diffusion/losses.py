"""Training losses: a weight for the cross-entropy at each corrupted position, and the denominator of the step.

The loss of an optimiser step is the sum of weight_i CE_i over all its micro-batches and processes, divided by the sum
of their denominators: one number for the whole step, so that cutting it up differently changes nothing.
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
    """A loss over corrupted positions; calling it gives the plain form, from the logits of all positions.

    `weigh(noised, target [B, L] bool, sft, mask_token_id, reweight_cap)` gives the weights [B, L].
    `weighs_by_inverse_p`: whether these hold the factor 1/p; if so, training never forces a mask on a sequence whose
    draw masks nothing, and otherwise always. `by_sample`: the denominator is the number of samples in pretraining too,
    not that of tokens. `smoothed`: CE_i is label-smoothed.
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
        """Weight of the cross-entropy at each position, float32 [B, L]; 0 where it is not in the loss.

        `tokens` [B, L]: the clean tokens. `valid` [B, L] bool: real tokens, None = all. `prompt_lengths` [B]: given in
        SFT, None in pretraining. `reweight_cap`: upper bound of 1/p.
        """
        from qwen3llada.diffusion.corruption import maskable_positions

        target = maskable_positions(tokens, valid, prompt_lengths)
        sft = prompt_lengths is not None
        return self.weigh(noised, target, sft=sft, mask_token_id=mask_token_id, reweight_cap=reweight_cap)

    def step_denominator(self, *, tokens: int, samples: int, sft: bool) -> float:
        """What a step of that many real `tokens` (without padding) and `samples` is divided by."""
        return float(samples if sft or self.by_sample else tokens)

    def denominator(
        self, tokens: Tensor, *, valid: Tensor | None = None, prompt_lengths: Tensor | None = None
    ) -> float:
        """What this batch adds to the step's denominator; rows that are all padding are no samples."""
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
        """The loss of a batch that is a whole step, a scalar in float32 (in float64 for float64 logits).

        `logits` [B, L, V]; the other arguments as in `token_weights`; `smoothing` in [0, 1) is for smoothed losses.
        """
        weights = self.token_weights(
            tokens,
            noised,
            mask_token_id=mask_token_id,
            valid=valid,
            prompt_lengths=prompt_lengths,
            reweight_cap=reweight_cap,
        )
        chosen = weights != 0  # what is not in the loss has no gradient either, not even where its logits are infinite
        cross_entropy = smoothed_cross_entropy(logits[chosen], tokens[chosen], smoothing if self.smoothed else 0.0)
        denominator = self.denominator(tokens, valid=valid, prompt_lengths=prompt_lengths)
        return (weights[chosen] * cross_entropy).sum() / max(denominator, 1.0)


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """(1-s) CE_i + s mean_v(-log q_v), [N], of `logits` [N, V] and `targets` [N]; at least in float32."""
    import torch

    log_q = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    cross_entropy = -log_q.gather(-1, targets[:, None]).squeeze(-1)
    return cross_entropy if smoothing == 0 else (1 - smoothing) * cross_entropy - smoothing * log_q.mean(dim=-1)


def inverse_probability(
    noised: Noised, target: Tensor, *, sft: bool, mask_token_id: int, reweight_cap: float | None
) -> Tensor:
    """min(1/p, cap) where masked, in SFT divided by the answer's length (LLaDA, arXiv 2502.09992, algorithms 1 and 2).

    Each position is masked with probability p, its own or that of its sequence, so where no cap binds its mean weight
    is 1, whatever p is.
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

    A position is corrupted where the noisy token is the mask token. Rows that noise replaced by other tokens are told
    by a masked position that holds another id; there the boolean mask decides.
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
