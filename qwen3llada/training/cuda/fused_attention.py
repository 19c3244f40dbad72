"""Attention of a decoder layer for training on a GPU, with norm and rotation of queries and keys in one kernel."""

from types import MethodType
from typing import Any

from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import eager_attention_forward

from qwen3llada.training.cuda.rotary_kernels import norm_rotate


def fuse_attention(model: Any) -> None:
    """Replace each attention module's `forward` in `model`, in place. Parameters and their names stay the same."""
    for layer in model.model.layers:
        layer.self_attn.forward = MethodType(attention, layer.self_attn)


def attention(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Any = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """`Qwen3Attention.forward` [B, L, D] for training. Raises ValueError if given a key-value cache.

    Queries and keys are rounded once, after the rotation. Qwen3's own forward rounds after each operation.
    """
    if past_key_values is not None:
        raise ValueError("past_key_values must be None in training")
    projections = (self.q_proj, self.k_proj, self.v_proj)
    query, key, value = (p(hidden_states).unflatten(-1, (-1, self.head_dim)) for p in projections)  # [B, L, heads, d]
    cos, sin = position_embeddings  # [B or 1, L, d]
    query = norm_rotate(query, self.q_norm.weight, cos, sin, self.q_norm.variance_epsilon)
    key = norm_rotate(key, self.k_norm.weight, cos, sin, self.k_norm.variance_epsilon)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
    output, weights = attend(
        self,
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attention_mask,
        dropout=self.attention_dropout if self.training else 0.0,
        scaling=self.scaling,
        sliding_window=self.sliding_window,
        **kwargs,
    )
    return self.o_proj(output.flatten(2)), weights
