"""Attention of a decoder layer for training on a GPU, with norm and rotation of queries and keys in one kernel."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import eager_attention_forward

from qwen3llada.modeling.modeling_qwen3llada import flex_options
from qwen3llada.training.cuda.flash_attention_4 import can_compute, flash_attention_4
from qwen3llada.training.cuda.rotary_kernels import norm_rotate

FORWARD_TILES = {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3}
BACKWARD_TILES = {
    "bwd_BLOCK_M1": 32,
    "bwd_BLOCK_N1": 64,
    "bwd_BLOCK_M2": 64,
    "bwd_BLOCK_N2": 32,
    "bwd_num_warps": 4,
    "bwd_num_stages": 3,
}
SHORT = 4096  # columns: up to there the backward pass gains from small tiles


def fuse_attention(model: Any, *, flash: bool = False) -> None:
    """Replace each attention module's `forward` in `model`, in place. Parameters and their names stay the same.

    flash: FlashAttention-4's kernels compute the masks that they can (`can_compute`).
    """
    for layer in model.model.layers:
        layer.self_attn.flash = flash
        layer.self_attn.forward = MethodType(attention, layer.self_attn)
        layer.self_attn.attend_some = _attend_some


def attention(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Any = None,
    past_key_values: Any = None,
    queries: int | None = None,
    kernel_options: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """`Qwen3Attention.forward` [B, L, D] for training. Raises ValueError if given a key-value cache.

    queries: the result is that of so many first columns alone, [B, queries, D]; None: of all.
    kernel_options: FlexAttention's (`flex_options`), beside the tiles that are chosen here.

    Queries and keys are rounded once, after the rotation. Qwen3's own forward rounds after each operation.
    """
    if past_key_values is not None:
        raise ValueError("past_key_values must be None in training")
    asking = hidden_states if queries is None else hidden_states[:, :queries]
    projected = (self.q_proj(asking), self.k_proj(hidden_states), self.v_proj(hidden_states))
    query, key, value = (x.unflatten(-1, (-1, self.head_dim)) for x in projected)  # [B, L, heads, d]
    cos, sin = position_embeddings  # [B or 1, L, d]
    own_cos, own_sin = (cos, sin) if queries is None else (cos[:, :queries].contiguous(), sin[:, :queries].contiguous())
    query = norm_rotate(query, self.q_norm.weight, own_cos, own_sin, self.q_norm.variance_epsilon)
    key = norm_rotate(key, self.k_norm.weight, cos, sin, self.k_norm.variance_epsilon)
    if self.flash and self.attention_dropout == 0 and can_compute(query, attention_mask):
        return self.o_proj(flash_attention_4(query, key, value, attention_mask, self.scaling).flatten(2)), None
    flex = isinstance(attention_mask, BlockMask)
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
        kernel_options=(flex_tiles(query) or {}) | (kernel_options or {}) if flex else None,
        **kwargs,
    )
    return self.o_proj(output.flatten(2)), weights


def _attend_some(self: Any, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], mask: Any, kept: int) -> Tensor:
    """What `objective.last_layer` asks of the last layer's attention."""
    options = flex_options(mask, kept)
    return attention(self, hidden, position_embeddings, mask, queries=kept, kernel_options=options)[0]


def flex_tiles(query: Tensor) -> dict[str, Any] | None:
    """Tile sizes of FlexAttention's kernels that were fastest on an H200, at Qwen3-0.6B shapes; None: torch's own."""
    if query.shape[-1] != 128 or query.dtype == torch.float32 or torch.cuda.get_device_capability(query.device)[0] != 9:
        return None
    return FORWARD_TILES | BACKWARD_TILES if query.shape[1] <= SHORT else FORWARD_TILES
