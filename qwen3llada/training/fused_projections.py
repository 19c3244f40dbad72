"""Projections of a layer that read the same input, computed as one matrix product.

Queries, keys and values are three products of one input, gate and up two. As one product each they read the input once,
and in the backward pass give its gradient in one piece instead of three or two to be added up. The weights stay
separate parameters: they are joined in each step, in the same pass over them that rounds them to the compute dtype
under autocast. It pays under torch.compile, which fuses joining and rounding.

Rotary embeddings are written with a roll instead of two slices and a concatenation. The numbers are the same, and the
compiler makes one kernel of norm and rotation, forward and backward, instead of two.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import eager_attention_forward


def fuse_projections(model: Any) -> None:
    """Replace `forward` of each layer's attention and MLP in `model`, in place. Parameters and their names stay."""
    for layer in model.model.layers:
        layer.self_attn.forward = MethodType(attention, layer.self_attn)
        layer.mlp.forward = MethodType(mlp, layer.mlp)


def attention(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Any = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """`Qwen3Attention.forward` [B, L, D] for training, which has no cache. Raises ValueError if given one."""
    if past_key_values is not None:
        raise ValueError("past_key_values must be None in training")
    joined = joined_linear(hidden_states, self.q_proj, self.k_proj, self.v_proj)
    query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in joined)  # [B, L, heads, d]
    cos, sin = position_embeddings  # [B, L, d]
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
    output, weights = attend(
        self,
        rotate(self.q_norm(query).transpose(1, 2), cos, sin),
        rotate(self.k_norm(key).transpose(1, 2), cos, sin),
        value.transpose(1, 2),
        attention_mask,
        dropout=self.attention_dropout if self.training else 0.0,
        scaling=self.scaling,
        sliding_window=self.sliding_window,
        **kwargs,
    )
    return self.o_proj(output.flatten(2)), weights


def mlp(self: Any, x: Tensor) -> Tensor:
    """`Qwen3MLP.forward` [B, L, D]."""
    gate, up = joined_linear(x, self.gate_proj, self.up_proj)
    return self.down_proj(self.act_fn(gate) * up)


def joined_linear(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """`tuple(layer(x) for layer in layers)` of layers without bias, by one product."""
    output = functional.linear(x, torch.cat([layer.weight for layer in layers]))
    return output.split([layer.out_features for layer in layers], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [B, heads, L, d], cos and sin [B, L, d] (Su et al., arXiv 2104.09864).

    x·cos + rotate_half(x)·sin, where rotate_half swaps the halves of d and negates what becomes the first.
    """
    half = x.shape[-1] // 2
    signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    return x * cos[:, None] + x.roll(half, dims=-1) * signed[:, None]
