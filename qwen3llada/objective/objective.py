"""The training objective as one module: one pass through the body, logits only at corrupted positions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qwen3llada.diffusion.fused_cross_entropy import fused_cross_entropy
from qwen3llada.diffusion.token_log_probs import token_log_probs
from qwen3llada.objective.tied_gradient import TiedGradient, is_worthwhile


class MaskedDiffusionObjective(nn.Module):
    """Sum of weighted cross-entropies of a masked diffusion model at corrupted positions.

    All computation of a step happens in one call of `forward`, so that wrappers of this module work: DDP's gradient
    hooks, FSDP2's all-gather, autocast. Wrap this module, not the model inside. Under FSDP2 the projection (and a tied
    embedding) belongs to the outermost module's group, which is gathered while `forward` runs. The body, `model.model`,
    may be compiled, checkpointed and split into FSDP groups.

    Args:
        model: a Qwen3 language model. `model.model` is the body; its output embeddings are a Linear without bias.
        chunk_size: tokens projected to the vocabulary at a time; None: `fused_cross_entropy` chooses.
    """

    model: Any

    def __init__(self, model: Any, chunk_size: int | None = None):
        super().__init__()
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise ValueError(f"{head!r} must be a linear layer without bias: only its weight enters the fused loss")
        self.model = model
        self.chunk_size: int | None = chunk_size

    def forward(
        self,
        noisy: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        *,
        positions: Tensor | None = None,
        attention_mask: Any = None,
        last_layer_mask: Any = None,
        position_ids: Tensor | None = None,
        smoothing: float = 0.0,
        return_per_token: bool = False,
        return_log_probs: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Weighted sum of cross-entropies over corrupted positions. The caller divides by the step's denominator.

        Args:
            noisy: [B, S] corrupted tokens. S > L if context-only tokens follow that are never predicted (the clean
                copy under block-causal attention).
            targets: [B, L] the tokens before corruption.
            token_weights: [B, L] float32 weight of each position's cross-entropy; 0 if the position is not corrupted.
            positions: [N] indices of the corrupted positions in the flattened [B, L]. None computes them, which makes
                the host wait for the device, so data loading should provide them. N = 0 gives 0 with zero gradients.
            attention_mask: passed to the model's body.
            last_layer_mask: the mask of the first L columns in the last layer, which then computes the output of no
                other (see `last_layer`; the model's last layer must have been shortened). None: all S.
            position_ids: [B, S], passed to the model's body.
            smoothing: label smoothing, as in `fused_cross_entropy`.
            return_per_token: also return the cross-entropies [N] at `positions`, unweighted, unsmoothed and detached.
            return_log_probs: return instead, as `token_log_probs`, the log-probabilities [N] of the targets at
                `positions`, to be differentiated, and the entropies [N] there. The weights then have no effect.

        Raises:
            ValueError: the projection's weight is sharded while `forward` runs (see the class).
        """
        if positions is None:
            positions = token_weights.flatten().nonzero().squeeze(1)
        positions = positions.to(noisy.device, non_blocking=True)
        embedding, projection = self.model.get_input_embeddings(), self._projection()
        tied = TiedGradient(embedding) if is_worthwhile(embedding, projection) else None
        embedded = self._embedded(noisy, embedding if tied is None else tied.embed)
        length = targets.shape[1]
        predicted = self._states(embedded, length, positions, attention_mask, last_layer_mask, position_ids)
        if tied is not None:
            predicted, projection = tied.project(predicted)
        true = targets.flatten().index_select(0, positions)
        if return_log_probs:
            return token_log_probs(predicted, projection, true, chunk_size=self.chunk_size)
        return fused_cross_entropy(
            predicted,
            projection,
            true,
            token_weights.flatten().index_select(0, positions),
            smoothing=smoothing,
            chunk_size=self.chunk_size,
            return_per_token=return_per_token,
        )

    def _states(
        self,
        embedded: Tensor,
        length: int,
        positions: Tensor,
        attention_mask: Any,
        last_layer_mask: Any,
        position_ids: Tensor | None,
    ) -> Tensor:
        """Final hidden states [N, D] at `positions` of the first `length` columns of `embedded` [B, S, D]."""
        predict_states = getattr(self.model, "predict_states", None)  # see `evaluation.fast_body`
        if predict_states is not None:
            chosen = positions // length * embedded.shape[1] + positions % length
            states = predict_states(embedded, attention_mask, position_ids, chosen)
            if states is not None:
                return states
        fewer = {} if last_layer_mask is None else {"kept": length, "kept_mask": last_layer_mask}
        body = self.model.model(
            inputs_embeds=embedded, attention_mask=attention_mask, position_ids=position_ids, **fewer
        )
        return body.last_hidden_state[:, :length].flatten(0, 1).index_select(0, positions)

    @staticmethod
    def _embedded(tokens: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Embeddings [B, S, D], under autocast in its dtype, so that the residual stream has that dtype.

        Autocast alone would leave the residual stream in float32, whose memory traffic takes longer than the norms.
        """
        embedded = embed(tokens)
        device = tokens.device.type
        return embedded.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else embedded

    def _projection(self) -> Tensor:
        """Weight [V, D] of the output embeddings. Looked up in each step, because FSDP2 swaps it when it gathers."""
        weight = self.model.get_output_embeddings().weight
        if hasattr(weight, "placements"):  # a DTensor; importing its class would take longer than a step
            raise ValueError(
                f"output embeddings placed as {weight.placements} must be whole while the objective runs: "
                "wrap the objective itself in FSDP2, and its output embeddings in no group of their own"
            )
        return weight
