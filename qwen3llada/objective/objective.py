"""The training objective as one module: the body runs once, and only corrupted positions meet the vocabulary."""

from typing import Any

import torch
from torch import Tensor, nn

from qwen3llada.diffusion.fused_cross_entropy import fused_cross_entropy


class MaskedDiffusionObjective(nn.Module):
    """Sum of weighted cross-entropies of a masked diffusion model at corrupted positions.

    Everything a step computes is in one call of `forward`, so that whatever wraps this module acts where it should:
    DDP's gradient hooks, FSDP2's gathering of parameters, autocast. Wrap this module, not the model inside. Under FSDP2
    the projection (and the embedding, where they are tied) belongs to the group of the outermost module, which is
    gathered while `forward` runs; `model.model`, the body, may be compiled, checkpointed and split into groups at will.

    Args:
        model: a Qwen3 language model: `model.model` is the body, its output embeddings a linear layer without bias.
        chunk_size: tokens projected to the vocabulary at a time; None as `fused_cross_entropy` chooses.
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
        position_ids: Tensor | None = None,
        smoothing: float = 0.0,
        return_per_token: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The sum over corrupted positions of weight times cross-entropy; the caller divides by the step's denominator.

        Args:
            noisy: [B, S] corrupted tokens; S > L where more tokens follow that are seen but never predicted (the clean
                copy of a text under block-causal attention).
            targets: [B, L] the tokens before corruption.
            token_weights: [B, L] float32 weight of each position's cross-entropy; 0 where a position is not corrupted.
            positions: [N] indices of the corrupted positions in the flattened [B, L]. None finds them, which makes the
                host wait for an accelerator: data loading should provide them. N = 0 gives 0 with zero gradients.
            attention_mask: whatever the model's body accepts.
            position_ids: [B, S], as the body accepts them.
            smoothing: label smoothing, as in `fused_cross_entropy`.
            return_per_token: also return the cross-entropies [N] at `positions`, unweighted, unsmoothed and detached.

        Raises:
            ValueError: the projection's weight is sharded while `forward` runs (see the class).
        """
        embedded = self._embedded(noisy)
        body = self.model.model(inputs_embeds=embedded, attention_mask=attention_mask, position_ids=position_ids)
        if positions is None:
            positions = token_weights.flatten().nonzero().squeeze(1)
        positions = positions.to(noisy.device, non_blocking=True)
        hidden = body.last_hidden_state[:, : targets.shape[1]].flatten(0, 1)  # [B·L, D]
        return fused_cross_entropy(
            hidden.index_select(0, positions),
            self._projection(),
            targets.flatten().index_select(0, positions),
            token_weights.flatten().index_select(0, positions),
            smoothing=smoothing,
            chunk_size=self.chunk_size,
            return_per_token=return_per_token,
        )

    def _embedded(self, tokens: Tensor) -> Tensor:
        """[B, S, D], under autocast in its dtype: what the layers add up is then as wide as what they compute with.

        Autocast alone would leave it in float32, whose reading and writing takes more time than the layers' norms.
        """
        embedded = self.model.get_input_embeddings()(tokens)
        device = tokens.device.type
        return embedded.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else embedded

    def _projection(self) -> Tensor:
        """[V, D], the weight of the output embeddings: looked up in each step, since FSDP2 swaps it as it gathers."""
        weight = self.model.get_output_embeddings().weight
        if hasattr(weight, "placements"):  # a DTensor; importing its class costs more than a step
            raise ValueError(
                f"output embeddings placed as {weight.placements} must be whole while the objective runs: "
                "wrap the objective itself in FSDP2, and its output embeddings in no group of their own"
            )
        return weight
