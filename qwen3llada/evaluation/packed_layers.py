"""The body of a model for likelihoods on a GPU: the sampler's packed weights and kernels, under any mask.

Transformers' layers launch about fifty kernels each, most of which only move memory. Here it is nine. Values are the
layers' own to the rounding of the dtype.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

log = logging.getLogger(__name__)


@contextmanager
def packed_layers(model: Any) -> Iterator[None]:
    """Within it, the body of a `model` on a GPU computes with packed weights, for passes without gradients.

    Elsewhere the model stays as it is, and also where it cannot be packed; the reason is logged once.
    """
    if model.device.type != "cuda" or "forward" in vars(model.model):
        yield
        return
    from qwen3llada.sampling.cuda.packed_model import unsupported  # needs Triton

    if (why := unsupported(model)) is not None:
        if why not in _said:
            log.warning("likelihoods are computed by the model's own layers, which takes longer: %s", why)
            _said.add(why)
        yield
        return
    from qwen3llada.sampling.cuda.program_cache import Graphs

    model.model.forward = PackedBody(model, Graphs.of(model).packed)
    try:
        yield
    finally:
        del model.model.forward


_said: set[str] = set()


class PackedBody:
    """The forward pass of `model.model` by the weights and kernels of a `PackedModel`."""

    def __init__(self, model: Any, packed: Any) -> None:
        self.packed, self.kinds, self.plain = packed, model.config.layer_types, model.model.forward

    def __call__(
        self, *, inputs_embeds: Tensor, attention_mask: Any = None, position_ids: Tensor | None = None, **rest: Any
    ) -> BaseModelOutputWithPast:
        """Final hidden states [B, S, D] of embeddings [B, S, D].

        Args:
            attention_mask: as the model's body takes it: None, [B or 1, 1, S, S], or one of these by type of layer.
                What scaled dot product attention does not take, a BlockMask, is left to the model's own layers.
            position_ids: [B or 1, S]; None: counted from 0.
        """
        masks = attention_mask if isinstance(attention_mask, dict) else dict.fromkeys(self.kinds, attention_mask)
        if any(not isinstance(mask, Tensor | None) for mask in masks.values()):
            given = {"attention_mask": attention_mask, "position_ids": position_ids}
            return self.plain(inputs_embeds=inputs_embeds, **given, **rest)
        rows, length, _ = inputs_embeds.shape
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device)[None]
        positions = position_ids.expand(rows, length).flatten().int()
        x = inputs_embeds.flatten(0, 1).clone()  # [N, D], changed in place
        for kind, layer in zip(self.kinds, self.packed.layers, strict=True):
            self._add_layer(x, layer, positions, masks[kind], rows)
        return BaseModelOutputWithPast(last_hidden_state=self._norm(x, self.packed.norm).view_as(inputs_embeds))

    def _add_layer(self, x: Tensor, layer: Any, positions: Tensor, mask: Tensor | None, rows: int) -> None:
        """Add to the residual stream x [N, D] what a layer computes from it."""
        from qwen3llada.sampling.cuda.layer_kernels import gated, norm_rope

        packed = self.packed
        qkv = nn.functional.linear(self._norm(x, layer.input_norm), layer.qkv, layer.qkv_bias)
        qk = norm_rope(qkv, layer.q_norm, layer.k_norm, positions, packed.angles, packed.eps, packed.heads)
        mixed = attend(qk, qkv, packed.heads, mask, rows)
        if layer.out_bias is None:
            x.addmm_(mixed, layer.out.T)
        else:  # rounded to the model's type before the residual is added, as in the layer itself
            x += nn.functional.linear(mixed, layer.out, layer.out_bias)
        x.addmm_(gated(self._norm(x, layer.post_norm) @ layer.gate_up.T), layer.down.T)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        from qwen3llada.sampling.cuda.layer_kernels import rms_norm

        return rms_norm(x, weight, self.packed.eps)


def attend(qk: Tensor, qkv: Tensor, heads: Any, mask: Tensor | None, rows: int) -> Tensor:
    """Attention of all heads, [N, HQ·E].

    Args:
        qk: [N, (HQ + HK)·E] queries and keys, normalised and rotated. qkv: [N, (HQ + 2·HK)·E], whose end are the
            values. heads: HQ, HK and E. mask: [B or 1, 1, S, S]; None: all see all. rows: B; N = B·S.
    """
    keys = heads.keys * heads.size
    parts = qk[:, :-keys], qk[:, -keys:], qkv[:, -keys:]
    query, key, value = (x.view(rows, -1, x.shape[1] // heads.size, heads.size).transpose(1, 2) for x in parts)
    if mask is not None:  # the kernels that take a mask take no grouped heads
        key, value = (x.repeat_interleave(heads.queries // heads.keys, 1) for x in (key, value))
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=mask is None)
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)
