"""Norm, rotary embedding and attention of a layer, in one kernel where that pays. Shapes: see `attention_kernel.py`."""

from torch import Tensor

from qwen3llada.sampling.cuda.attention_few_rows import attend_few_rows
from qwen3llada.sampling.cuda.attention_kernel import attention
from qwen3llada.sampling.cuda.attention_ranges import Blocks
from qwen3llada.sampling.cuda.attention_tiles import Tiles, attention_tiles
from qwen3llada.sampling.cuda.layer_kernels import Heads, Rotary, Store, norm_rope


def rotated_attention(
    qkv: Tensor,
    rotary: Rotary,
    prefix: tuple[Tensor, Tensor] | None,
    ranges: Tensor,
    heads: Heads,
    blocks: Blocks | None = None,
    store: Store | None = None,
    *,
    stored_first: bool = False,
    tiles: Tiles | None = None,
) -> Tensor:
    """`norm_rope` and `attention` of qkv [N, (HQ + 2·HK)·E]: [N, HQ·E]. For few queries they are one kernel.

    Args:
        prefix, ranges, blocks, tiles: see `attention`.
        store: where keys and values are stored.
        stored_first: whether the units read what others of them store, so that all must have stored before.
    """
    units, columns = ranges.shape[1], prefix[0].shape[1] if prefix is not None else 0
    tiles = tiles or attention_tiles(len(qkv) // units * (heads.queries // heads.keys), heads, units, columns, qkv)
    if tiles.few and not stored_first:
        return attend_few_rows(qkv, qkv, prefix, ranges, heads, blocks, tiles, rotary, store)
    return attention(norm_rope(qkv, *rotary, heads, store), qkv, prefix, ranges, heads, blocks, tiles)
