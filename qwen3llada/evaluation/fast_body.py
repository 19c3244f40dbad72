"""The body of a Qwen3 model for passes without gradients, under any mask: fewer operations than Transformers' layers.

Half of the time of Transformers' layers goes to operations that only move memory: norms, rotary embedding, residual
sums. On a GPU the sampler's packed weights and kernels take their place, on a CPU operations in place. The last layer
goes on after attention with the positions that are predicted alone. Values are the layers' own to the rounding of the
dtype.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qwen3llada.sampling.cuda.attention_ranges import Range

log = logging.getLogger(__name__)
_said: set[str] = set()


@contextmanager
def fast_body(model: Any) -> Iterator[None]:
    """Within it, `MaskedDiffusionObjective` computes the body of `model` in this way.

    A model of other layers than Qwen3's plain ones stays as it is, and the reason is logged once.
    """
    if (why := _unsupported(model)) is not None:
        if why not in _said:
            log.warning("likelihoods are computed by the model's own layers, which takes longer: %s", why)
            _said.add(why)
        yield
        return
    model.predict_states = PackedBody(model) if model.device.type == "cuda" else PlainBody(model)
    try:
        yield
    finally:
        del model.predict_states


def _unsupported(model: Any) -> str | None:
    """Why the layers of a model cannot be replaced, in one line; None if they can."""
    if model.device.type == "cuda":
        from qwen3llada.sampling.cuda.packed_model import unsupported  # needs Triton

        return unsupported(model)
    if "forward" in vars(model.model):
        return "its layers are compiled"
    return None


class _Body:
    """The forward pass of a model. Shapes: B rows of S columns, N = B·S tokens, D hidden size, E head size."""

    def __init__(self, model: Any) -> None:
        self.model, self.kinds = model, model.config.layer_types

    def __call__(
        self, inputs_embeds: Tensor, attention_mask: Any, position_ids: Tensor | None, chosen: Tensor
    ) -> Tensor | None:
        """Final hidden states [C, D] of embeddings [B, S, D] at `chosen` [C], indices of the flattened [B, S].

        Args:
            attention_mask: None, [B or 1, 1, S, S], or one of these by type of layer. [B, 1, 1, S] where all queries of
                a row see the same keys, which must be its first ones.
            position_ids: [B or 1, S]; None: counted from 0.

        Returns: None for a mask of another kind, which is left to the model's own layers.
        """
        masks = attention_mask if isinstance(attention_mask, dict) else dict.fromkeys(self.kinds, attention_mask)
        if any(not isinstance(mask, Tensor | None) for mask in masks.values()):
            return None
        rows, length, _ = inputs_embeds.shape
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device)[None]
        places = self.places(inputs_embeds, position_ids)
        seen = {kind: self.seen(mask, rows, inputs_embeds) for kind, mask in masks.items()}
        x = inputs_embeds.flatten(0, 1).clone()  # [N, D], changed in place
        for number, kind in enumerate(self.kinds):
            mixed = self.mixed(number, x, places, seen[kind])
            if number == len(self.kinds) - 1:
                mixed, x = mixed[chosen], x[chosen]
            self.add(number, x, mixed)
        return self.last_norm(x)

    def places(self, embedded: Tensor, position_ids: Tensor) -> Any:
        """What `heads` needs of the positions."""
        raise NotImplementedError

    def seen(self, mask: Tensor | None, rows: int, like: Tensor) -> Any:
        """A mask in the form that `mixed` needs."""
        return mask, rows

    def mixed(self, number: int, x: Tensor, places: Any, seen: Any) -> Tensor:
        """What attention of layer `number` finds [N, HQ·E], from x [N, D]."""
        raise NotImplementedError

    def add(self, number: int, x: Tensor, mixed: Tensor) -> None:
        """Add to x [C, D] the projection of what attention found [C, HQ·E], and the MLP."""
        raise NotImplementedError

    def last_norm(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of all heads: [B, HQ, S, E] and [B, HK, S, E] to [N, HQ·E]. `mask` as in `_Body`."""
    if mask is not None:  # the kernels that take a mask take no grouped heads
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=mask is None)
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


class PackedBody(_Body):
    """On a GPU."""

    def __init__(self, model: Any) -> None:
        from qwen3llada.sampling.cuda.program_cache import Graphs

        super().__init__(model)
        self.packed = Graphs.of(model).packed

    def places(self, embedded: Tensor, position_ids: Tensor) -> Tensor:
        return position_ids.expand(embedded.shape[:2]).flatten().int()

    def seen(self, mask: Tensor | None, rows: int, like: Tensor) -> Any:
        if mask is not None and mask.shape[2] > 1:
            return mask, rows
        ranges = torch.zeros(len(Range), rows, dtype=torch.int32, device=like.device)
        ranges[Range.OWN_HIGH] = like.shape[1] if mask is None else mask.flatten(1).sum(1, dtype=torch.int32)
        return ranges

    def mixed(self, number: int, x: Tensor, places: Tensor, seen: Any) -> Tensor:
        from qwen3llada.sampling.cuda.attention_kernel import attention
        from qwen3llada.sampling.cuda.layer_kernels import norm_rope, rms_norm

        packed, layer = self.packed, self.packed.layers[number]
        qkv = nn.functional.linear(rms_norm(x, layer.input_norm, packed.eps), layer.qkv, layer.qkv_bias)
        qk = norm_rope(qkv, layer.q_norm, layer.k_norm, places, packed.angles, packed.eps, packed.heads)
        if isinstance(seen, Tensor):  # all queries of a row see the same keys
            return attention(qk, qkv, None, seen, packed.heads)
        mask, rows = seen
        size, keys = packed.heads.size, packed.heads.keys * packed.heads.size
        parts = qk[:, :-keys], qk[:, -keys:], qkv[:, -keys:]
        query, key, value = (part.view(rows, -1, part.shape[1] // size, size).transpose(1, 2) for part in parts)
        return attend(query, key, value, mask)

    def add(self, number: int, x: Tensor, mixed: Tensor) -> None:
        from qwen3llada.sampling.cuda.layer_kernels import gated, rms_norm

        layer = self.packed.layers[number]
        if layer.out_bias is None:
            x.addmm_(mixed, layer.out.T)
        else:  # rounded to the model's type before the residual is added, as in the layer itself
            x += nn.functional.linear(mixed, layer.out, layer.out_bias)
        x.addmm_(gated(rms_norm(x, layer.post_norm, self.packed.eps) @ layer.gate_up.T), layer.down.T)

    def last_norm(self, x: Tensor) -> Tensor:
        from qwen3llada.sampling.cuda.layer_kernels import rms_norm

        return rms_norm(x, self.packed.norm, self.packed.eps)


class PlainBody(_Body):
    """On a CPU. Norms and rotary embedding are computed in the dtype of the model."""

    def places(self, embedded: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.model.model.rotary_emb(embedded, position_ids)  # [B or 1, S, E], both halves alike
        half = cos.shape[-1] // 2
        return cos[:, :, None, :half], sin[:, :, None, :half]

    def mixed(self, number: int, x: Tensor, places: tuple[Tensor, Tensor], seen: tuple[Tensor | None, int]) -> Tensor:
        mask, rows = seen
        layer = self.model.model.layers[number]
        own, normed = layer.self_attn, norm(x, layer.input_layernorm)
        projections = (own.q_proj, own.k_proj, own.v_proj)
        query, key, value = (linear(normed).view(rows, len(x) // rows, -1, own.head_dim) for linear in projections)
        query, key = rotate(norm(query, own.q_norm), *places), rotate(norm(key, own.k_norm), *places)
        return attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask)

    def add(self, number: int, x: Tensor, mixed: Tensor) -> None:
        layer = self.model.model.layers[number]
        x += layer.self_attn.o_proj(mixed)
        x += layer.mlp(norm(x, layer.post_attention_layernorm))

    def last_norm(self, x: Tensor) -> Tensor:
        return norm(x, self.model.model.norm)


def norm(x: Tensor, module: Any) -> Tensor:
    """RMSNorm over the last dimension (Zhang and Sennrich, arXiv 1910.07467)."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(module.variance_epsilon)
    return x.mul(scale.rsqrt_()).mul_(module.weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al., arXiv 2104.09864) of x [B, S, H, E] by cos and sin [B or 1, S, 1, E/2]."""
    low, high = x.chunk(2, -1)
    out = torch.empty_like(x)
    first, second = out.chunk(2, -1)
    torch.mul(low, cos, out=first).addcmul_(high, sin, value=-1)
    torch.mul(high, cos, out=second).addcmul_(low, sin)
    return out
