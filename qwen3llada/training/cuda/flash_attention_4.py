"""FlashAttention-4's kernels for an H100 or H200, as operators that torch.compile and CUDA graphs take.

The package flash-attn-4 compiles its kernels for a mask when they are first called, which takes seconds.
Shapes: B rows, Q queries of H heads, S keys of K heads, d dimensions of a head.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from qwen3llada.modeling.masks import Limits, sees_by_limits

# Where so many query heads share a key head, each has its own pass over half the query heads: the kernel for equal
# numbers of heads stores the gradients of keys once. The other one adds them up in float32 memory, which is slower.
PASSES = 2


def can_compute(query: Tensor, mask: Any) -> bool:
    """Whether the kernels take queries of this type, and this mask: None, or one that reads nothing from memory."""
    positional = isinstance(mask, BlockMask) and getattr(mask, "limits", None) is not None
    return query.dtype == torch.bfloat16 and (mask is None or positional)


def flash_attention_4(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask | None, scale: float) -> Tensor:
    """Attention [B, Q, H, d] of queries [B, Q, H, d], keys and values [B, S, K, d]. mask: None lets all see all."""
    if mask is None:
        return forward(query, key, value, [], [], [0] * len(Limits._fields), scale)[0]
    tiles = [mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices]
    by_key = [mask.q_num_blocks, mask.q_indices, mask.full_q_num_blocks, mask.full_q_indices]
    return forward(query, key, value, tiles, by_key, list(mask.limits), scale)[0]


@torch.library.custom_op("qwen3llada::flash_attention_4", mutates_args=())
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tiles: list[Tensor],
    by_key: list[Tensor],
    limits: list[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention, and the log-sum-exp of each query's scores [B, H, Q].

    tiles: numbers and indices of the key tiles that a query tile sees in part, and of those that it sees in full.
    by_key: the same for the query tiles of a key tile. limits: `Limits`. Without a mask the lists are empty.
    """
    from flash_attn.cute.interface import _flash_attn_fwd

    # Packing the query heads of a key head into one tile was slower: 0.415 ms to 0.379 at 16 rows of 2 x 1024 columns.
    output, log_sum, *_ = _flash_attn_fwd(
        query, key, value, softmax_scale=scale, return_lse=True, pack_gqa=False, **_masked(tiles, limits)
    )
    return output, log_sum


@forward.register_fake
def _(query, key, value, tiles, by_key, limits, scale):
    rows, queries, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((rows, heads, queries), dtype=torch.float32)


@torch.library.custom_op("qwen3llada::flash_attention_4_backward", mutates_args=())
def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    gradient: Tensor,
    by_key: list[Tensor],
    limits: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, from that of the output [B, Q, H, d]."""
    from flash_attn.cute.interface import _flash_attn_bwd

    shared = query.shape[2] // key.shape[2]
    passes = shared if shared == PASSES else 1
    of_queries = query.new_empty(query.shape)
    sums = []
    for number in range(passes):  # the query heads number, number + passes, …
        own = slice(number, None, passes)
        _, of_keys, of_values = _flash_attn_bwd(
            query[:, :, own],
            key,
            value,
            output[:, :, own],
            gradient[:, :, own],
            log_sum[:, own],
            softmax_scale=scale,
            dq=of_queries[:, :, own],
            dk=key.new_empty(key.shape),
            dv=value.new_empty(value.shape),
            **_masked(by_key, limits),
        )
        sums.append((of_keys, of_values))
    if passes == 1:
        return of_queries, *sums[0]
    return of_queries, sums[0][0] + sums[1][0], sums[0][1] + sums[1][1]


@backward.register_fake
def _(query, key, value, output, log_sum, gradient, by_key, limits, scale):
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, value, _, by_key, limits, scale = inputs
    ctx.save_for_backward(query, key, value, *output, *by_key)
    ctx.limits, ctx.scale = limits, scale


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    """The log-sum-exp has no gradient: nothing but the backward pass reads it."""
    query, key, value, output, log_sum, *by_key = ctx.saved_tensors
    found = backward(query, key, value, output, log_sum, gradient, by_key, ctx.limits, ctx.scale)
    no_tiles: list[None] = [None] * len(by_key)
    return *found, no_tiles, no_tiles, None, None


forward.register_autograd(_differentiate, setup_context=_save)


def _masked(tiles: list[Tensor], limits: list[int]) -> dict[str, Any]:
    """A mask in the kernels' terms."""
    if not tiles:
        return {}
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    return {
        "mask_mod": _mask_function(Limits(*limits)),
        "block_sparse_tensors": BlockSparseTensorsTorch(*tiles, block_size=(128, 128)),
    }


@lru_cache(maxsize=64)  # a mask is compiled once for each
def _mask_function(limits: Limits) -> Any:
    """`sees_by_limits` as a function that the kernels can compile: of numbers in registers."""
    from cutlass import Boolean, cute
    from flash_attn.cute.utils import scalar_to_ssa

    @cute.jit
    def visible(row, head, query, key, lengths, tensors):
        return scalar_to_ssa(sees_by_limits(limits, query[0], key[0]), Boolean)

    visible.__cute_hash__ = f"qwen3llada {limits}"
    return visible
