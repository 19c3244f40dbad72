"""The sampler's attention as one Triton kernel: each unit attends to its range of a prefix and to itself.

Safe to capture in a CUDA graph. Softmax and sums are in float32. Shapes: U units of Q queries each, N = U·Q tokens,
HQ query heads, HK key/value heads, E head size, B rows and P columns of a prefix.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3llada.sampling.cuda.layer_kernels import Heads

NOTHING = tl.constexpr(-1.0e30)  # less than any score; unlike -inf, NOTHING - NOTHING is 0 and not NaN


class Range(IntEnum):
    """Rows of the tensor `ranges` [7, U] int32: the keys that each unit sees. A range ends before its `HIGH`."""

    OWN_LOW = 0  # range of the unit's own keys
    OWN_HIGH = 1
    OWNER = 2  # row of the prefix
    LOW = 3  # range of that row's keys
    HIGH = 4
    SKIP_LOW = 5  # range within LOW..HIGH that is hidden
    SKIP_HIGH = 6


@triton.jit
def _attend(
    q, acc, top, total, k_ptr, v_ptr, k_stride, v_stride, n, visible, first, last, scale,
    E: tl.constexpr, BLOCK_E: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys: update the running maximum, sum and weighted values (FlashAttention, arXiv 2205.14135).

    CAUSAL: a query sees only keys from `first` up to, not including, `last`.
    """
    e = tl.arange(0, BLOCK_E)
    keep = visible[:, None] & (e < E)[None, :]
    n = n.to(tl.int64)
    k = tl.load(k_ptr + n[:, None] * k_stride + e[None, :], mask=keep, other=0.0)
    v = tl.load(v_ptr + n[:, None] * v_stride + e[None, :], mask=keep, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(visible[None, :], scores, NOTHING)
    if CAUSAL:
        scores = tl.where((n[None, :] >= first[:, None]) & (n[None, :] < last[:, None]), scores, NOTHING)
    higher = tl.maximum(top, tl.max(scores, 1))
    decay = tl.exp(top - higher)
    p = tl.exp(scores - higher[:, None])
    acc = acc * decay[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    return acc, higher, total * decay + tl.sum(p, 1)


@triton.jit
def _attention(
    qk_ptr, qkv_ptr, keys_ptr, values_ptr, out_ptr,
    ranges_ptr, units, queries, prefix_columns, block_length, window, scale,
    HQ: tl.constexpr, HK: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PREFIX: tl.constexpr, CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one unit, over all heads that share one key/value head.

    CAUSAL: the unit consists of whole blocks, aligned to its last query. A query sees the keys of its own block and of
    the `window` blocks before it.
    """
    GROUP: tl.constexpr = HQ // HK
    unit = (tl.program_id(1) // HK).to(tl.int64)
    kv = tl.program_id(1) % HK
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query = m // GROUP
    head = kv * GROUP + m % GROUP
    e = tl.arange(0, BLOCK_E)
    keep = (query < queries)[:, None] & (e < E)[None, :]
    q_row = (HQ + HK) * E
    v_row = (HQ + 2 * HK) * E
    q = tl.load(
        qk_ptr + (unit * queries + query)[:, None] * q_row + head[:, None] * E + e[None, :], mask=keep, other=0.0
    )
    acc = tl.zeros([BLOCK_M, BLOCK_E], dtype=tl.float32)
    top = tl.full([BLOCK_M], NOTHING, dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    column = tl.arange(0, BLOCK_N)
    if PREFIX:
        first = tl.load(ranges_ptr + 2 * units + unit).to(tl.int64) * prefix_columns * HK * E + kv * E
        low, high = tl.load(ranges_ptr + 3 * units + unit), tl.load(ranges_ptr + 4 * units + unit)
        skip_low, skip_high = tl.load(ranges_ptr + 5 * units + unit), tl.load(ranges_ptr + 6 * units + unit)
        for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
            n = start + column
            visible = (n >= low) & (n < high) & ((n < skip_low) | (n >= skip_high))
            acc, top, total = _attend(
                q, acc, top, total, keys_ptr + first, values_ptr + first, HK * E, HK * E, n, visible, query, query,
                scale, E, BLOCK_E, False, PRECISION,
            )  # fmt: skip
    own_k = qk_ptr + unit * queries * q_row + (HQ + kv) * E
    own_v = qkv_ptr + unit * queries * v_row + (HQ + HK + kv) * E
    low, high = tl.load(ranges_ptr + unit), tl.load(ranges_ptr + units + unit)
    first_key, last_key = query, query
    if CAUSAL:
        last_key = queries - (queries - 1 - tl.minimum(query, queries - 1)) // block_length * block_length
        first_key = last_key - (window + 1) * block_length
        low, high = tl.maximum(low, tl.min(first_key, 0)), tl.minimum(high, tl.max(last_key, 0))
    for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        n = start + column
        acc, top, total = _attend(
            q, acc, top, total, own_k, own_v, q_row, v_row, n, (n >= low) & (n < high), first_key, last_key, scale,
            E, BLOCK_E, CAUSAL, PRECISION,
        )  # fmt: skip
    out = acc / total[:, None]
    at = out_ptr + (unit * queries + query)[:, None] * (HQ * E) + head[:, None] * E + e[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=keep)


class Blocks(NamedTuple):
    """Units of whole blocks. A block sees itself and the `window` blocks before it. `length` in tokens."""

    length: int
    window: int


def attention(
    qk: Tensor,
    qkv: Tensor,
    prefix: tuple[Tensor, Tensor] | None,
    ranges: Tensor,
    heads: Heads,
    blocks: Blocks | None = None,
) -> Tensor:
    """Attention of every unit to its range of the prefix and to itself: [N, HQ·E].

    Args:
        qk: [N, (HQ + HK)·E] from `norm_rope`. qkv: [N, (HQ + 2·HK)·E]; only the values are read.
        prefix: keys and values [B, P, HK, E], or None.
        ranges: [7, U] int32, see `Range`.
        blocks: for units of whole blocks, aligned to the unit's last token: which blocks see which.
    """
    units = ranges.shape[1]
    queries, group = qk.shape[0] // units, heads.queries // heads.keys
    out = torch.empty(qk.shape[0], heads.queries * heads.size, dtype=qk.dtype, device=qk.device)
    keys, values = prefix if prefix is not None else (qk, qk)
    tiles = attention_tiles(queries * group, units * heads.keys, prefix is None, qk)
    _attention[(triton.cdiv(queries * group, tiles.rows), units * heads.keys)](
        qk, qkv, keys, values, out,
        ranges, units, queries, keys.shape[1] if prefix is not None else 0,
        blocks.length if blocks else 1, blocks.window if blocks else 0, heads.size**-0.5,
        HQ=heads.queries, HK=heads.keys, E=heads.size, BLOCK_E=max(16, triton.next_power_of_2(heads.size)),
        BLOCK_M=tiles.rows, BLOCK_N=tiles.columns, PREFIX=prefix is not None, CAUSAL=blocks is not None,
        PRECISION="ieee" if qk.dtype == torch.float32 else "tf32",
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out


class Tiles(NamedTuple):
    """Tile sizes of the attention kernel and its compile options."""

    rows: int
    columns: int
    warps: int = 4
    stages: int = 2


def attention_tiles(rows: int, heads: int, long: bool, like: Tensor) -> Tiles:
    """The tiles that were fastest on an H200, for `heads` (units times key/value heads) of `rows` queries each."""
    fitting = max(16, triton.next_power_of_2(rows))
    if like.dtype == torch.float32:  # float32 needs twice the shared memory
        return Tiles(min(32, fitting), 32)
    if long:
        return Tiles(min(64, fitting), 128, warps=8)
    multiprocessors = torch.cuda.get_device_properties(like.device).multi_processor_count if like.is_cuda else 1
    few = triton.cdiv(rows, 64) * heads < 2 * multiprocessors
    return Tiles(min(32 if few else 64, fitting), 64)
