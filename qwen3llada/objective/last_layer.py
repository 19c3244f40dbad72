"""The last decoder layer where a clean copy follows the corrupted ones: nobody reads the clean copy's output.

Of the clean half the last layer computes keys and values only: no queries, no output projection, no MLP.
"""

from types import MethodType
from typing import Any

from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, apply_rotary_pos_emb, eager_attention_forward

from qwen3llada.modeling.modeling_qwen3llada import flex_options


def shorten_last_layer(model: Any) -> None:
    """Let the last layer of `model` take `kept` and `kept_mask`; without them it computes what it always did."""
    layer = model.model.layers[-1]
    layer.forward = MethodType(_forward, layer)
    model.shortens_last_layer = True


def _forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Any = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    kept: int | None = None,
    kept_mask: Any = None,
    **kwargs: Any,
) -> Tensor:
    """`Qwen3DecoderLayer.forward` [B, S, D], or of its first `kept` columns alone: [B, kept, D]."""
    if kept is None or position_embeddings is None:
        given = {"attention_mask": attention_mask, "position_embeddings": position_embeddings}
        return Qwen3DecoderLayer.forward(self, hidden_states, **given, **kwargs)
    attend = getattr(self.self_attn, "attend_some", None) or _attend_some
    mixed = attend(self.self_attn, self.input_layernorm(hidden_states), position_embeddings, kept_mask, kept)
    hidden = hidden_states[:, :kept] + mixed
    return hidden + self.mlp(self.post_attention_layernorm(hidden))


def _attend_some(self: Any, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], mask: Any, kept: int) -> Tensor:
    """`Qwen3Attention.forward` with queries of the first `kept` columns: [B, S, D] to [B, kept, D]."""

    def heads(projection: Any, x: Tensor) -> Tensor:
        return projection(x).unflatten(-1, (-1, self.head_dim))  # [B, columns, heads, d]

    cos, sin = position_embeddings  # [B or 1, S, d]
    query = self.q_norm(heads(self.q_proj, hidden[:, :kept])).transpose(1, 2)
    key = self.k_norm(heads(self.k_proj, hidden)).transpose(1, 2)
    value = heads(self.v_proj, hidden).transpose(1, 2)
    query, _ = apply_rotary_pos_emb(query, query, cos[:, :kept], sin[:, :kept])
    key, _ = apply_rotary_pos_emb(key, key, cos, sin)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
    dropout = self.attention_dropout if self.training else 0.0
    options = {"kernel_options": found} if (found := flex_options(mask, kept)) else {}
    output, _ = attend(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, **options)
    return self.o_proj(output.flatten(2))
