"""The sampler's attention in Triton: each unit attends to its range of a prefix and to itself.

A long prefix is split over several programs, whose results a second kernel joins (flash-decoding). Few queries have a
kernel of their own (`attention_few_rows.py`). Safe to capture in a CUDA graph. Softmax and sums are in float32. Shapes:
U units of Q queries each, N = U·Q tokens, HQ query heads, HK key/value heads, E head size, B rows and P columns of a
prefix, S splits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3llada.sampling.cuda.attention_few_rows import attend_few_rows
from qwen3llada.sampling.cuda.attention_ranges import Blocks
from qwen3llada.sampling.cuda.attention_steps import LOG2_E, NOTHING, keys_of_blocks, softmax_step
from qwen3llada.sampling.cuda.attention_tiles import MOST_SPLITS, Tiles, attention_tiles
from qwen3llada.sampling.cuda.layer_kernels import Heads

FEW_SPLITS = 8


@triton.jit
def _attend(
    q, acc, top, total, k_ptr, v_ptr, k_stride, v_stride, n, visible, first, last, scale,
    E: tl.constexpr, BLOCK_E: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys: update the running maximum, sum and weighted values.

    MASKED: only the keys `visible` are seen; where CAUSAL, a query sees them from `first` up to, not including, `last`.
    """
    e = tl.arange(0, BLOCK_E)
    n = n.to(tl.int64)
    k_at, v_at = k_ptr + n[:, None] * k_stride + e[None, :], v_ptr + n[:, None] * v_stride + e[None, :]
    if MASKED:
        keep = visible[:, None] & (e < E)[None, :]
        k, v = tl.load(k_at, mask=keep, other=0.0), tl.load(v_at, mask=keep, other=0.0)
    elif E == BLOCK_E:
        k, v = tl.load(k_at), tl.load(v_at)
    else:
        keep = (e < E)[None, :]
        k, v = tl.load(k_at, mask=keep, other=0.0), tl.load(v_at, mask=keep, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if MASKED:
        scores = tl.where(visible[None, :], scores, NOTHING)
        if CAUSAL:
            scores = tl.where((n[None, :] >= first[:, None]) & (n[None, :] < last[:, None]), scores, NOTHING)
    return softmax_step(acc, top, total, scores, v, PRECISION)


@triton.jit
def _attend_range(
    q, acc, top, total, k_ptr, v_ptr, k_stride, v_stride, low, high, all_low, all_high, skip_low, skip_high, first,
    last, scale, E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The keys from `low` to `high` without `skip_low`..`skip_high`. Every query sees all of `all_low`..`all_high`."""
    column = tl.arange(0, BLOCK_N)
    begin = low // BLOCK_N * BLOCK_N
    inner = (tl.maximum(all_low, low) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    outer = tl.minimum(all_high, high) // BLOCK_N * BLOCK_N
    inner, outer = tl.where(outer > inner, inner, begin), tl.where(outer > inner, outer, begin)
    for start in range(inner, outer, BLOCK_N):  # whole tiles that all see need no mask
        n = start + column
        acc, top, total = _attend(
            q, acc, top, total, k_ptr, v_ptr, k_stride, v_stride, n, n >= 0, first, last, scale,
            E, BLOCK_E, False, CAUSAL, PRECISION,
        )  # fmt: skip
    for edge in range(begin, high - (outer - inner), BLOCK_N):  # the tiles before and after
        n = tl.where(edge < inner, edge, edge + (outer - inner)) + column
        visible = (n >= low) & (n < high) & ((n < skip_low) | (n >= skip_high))
        acc, top, total = _attend(
            q, acc, top, total, k_ptr, v_ptr, k_stride, v_stride, n, visible, first, last, scale,
            E, BLOCK_E, True, CAUSAL, PRECISION,
        )  # fmt: skip
    return acc, top, total


@triton.jit
def _share(low, high, shares, least, BLOCK_N: tl.constexpr):
    """How a row's prefix is split: the first column, and columns of a split, whole tiles and at least `least`."""
    begin = low // BLOCK_N * BLOCK_N
    part = tl.maximum((high - begin + shares - 1) // shares, least)
    return begin, (part + BLOCK_N - 1) // BLOCK_N * BLOCK_N


@triton.jit(do_not_specialize=["units", "queries", "block_length", "window", "shift", "splits", "least"])
def _attention(
    qk_ptr, qkv_ptr, keys_ptr, values_ptr, out_ptr, tops_ptr, totals_ptr,
    ranges_ptr, units, queries, prefix_columns, block_length, window, shift, splits, least, scale,
    HQ: tl.constexpr, HK: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PREFIX: tl.constexpr, CAUSAL: tl.constexpr,
    SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one unit, over all heads that share one key/value head, on one split of the prefix.

    CAUSAL: the unit consists of whole blocks, see `Blocks`. The unit's own first key follows the prefix's last one.
    """
    GROUP: tl.constexpr = HQ // HK
    unit = (tl.program_id(1) // HK).to(tl.int64)
    kv = tl.program_id(1) % HK
    split = tl.program_id(2)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query = m // GROUP
    head = kv * GROUP + m % GROUP
    e = tl.arange(0, BLOCK_E)
    low, high = tl.load(ranges_ptr + 3 * units + unit), tl.load(ranges_ptr + 4 * units + unit)
    if SPLIT:
        first, part = _share(low, high, splits, least, BLOCK_N)
        if (split > 0) & (first + split * part >= high):
            return  # a short prefix has fewer splits
        low, high = tl.maximum(low, first + split * part), tl.minimum(high, first + (split + 1) * part)
    keep = (query < queries)[:, None] & (e < E)[None, :]
    q_row = (HQ + HK) * E
    v_row = (HQ + 2 * HK) * E
    q = tl.load(
        qk_ptr + (unit * queries + query)[:, None] * q_row + head[:, None] * E + e[None, :], mask=keep, other=0.0
    )
    acc = tl.zeros([BLOCK_M, BLOCK_E], dtype=tl.float32)
    top = tl.full([BLOCK_M], NOTHING, dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    first_key, last_key = query, query
    if CAUSAL:
        first_key, last_key = keys_of_blocks(query, queries, block_length, window, shift)
    if PREFIX:
        at = tl.load(ranges_ptr + 2 * units + unit).to(tl.int64) * prefix_columns * HK * E + kv * E
        skip_low, skip_high = tl.load(ranges_ptr + 5 * units + unit), tl.load(ranges_ptr + 6 * units + unit)
        all_high = tl.where(skip_low < skip_high, tl.minimum(skip_low, high), high)
        all_low, end = low, tl.load(ranges_ptr + 4 * units + unit)
        if CAUSAL:
            all_low = tl.maximum(low, end + tl.max(first_key, 0))
        acc, top, total = _attend_range(
            q, acc, top, total, keys_ptr + at, values_ptr + at, HK * E, HK * E, low, high, all_low, all_high,
            skip_low, skip_high, end + first_key, end + last_key, scale,
            E, BLOCK_E, BLOCK_N, CAUSAL, PRECISION,
        )  # fmt: skip
    if split == 0:
        own_k = qk_ptr + unit * queries * q_row + (HQ + kv) * E
        own_v = qkv_ptr + unit * queries * v_row + (HQ + HK + kv) * E
        low, high = tl.load(ranges_ptr + unit), tl.load(ranges_ptr + units + unit)
        all_low, all_high = low, high
        if CAUSAL:
            low, high = tl.maximum(low, tl.min(first_key, 0)), tl.minimum(high, tl.max(last_key, 0))
            all_low, all_high = tl.max(first_key, 0), tl.min(last_key, 0)
        acc, top, total = _attend_range(
            q, acc, top, total, own_k, own_v, q_row, v_row, low, high, all_low, all_high, 0, 0, first_key, last_key,
            scale, E, BLOCK_E, BLOCK_N, CAUSAL, PRECISION,
        )  # fmt: skip
    token = unit * queries + query
    if SPLIT:
        token += split.to(tl.int64) * units * queries
        there = token * HQ + head
        tl.store(tops_ptr + there, top, mask=query < queries)
        tl.store(totals_ptr + there, total, mask=query < queries)
    else:
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]  # queries of padding may see nothing
    at = out_ptr + token[:, None] * (HQ * E) + head[:, None] * E + e[None, :]
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["units", "queries", "tokens", "splits", "least"])
def _join(
    parts_ptr, tops_ptr, totals_ptr, out_ptr, ranges_ptr, units, queries, tokens, splits, least,
    HQ: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Join the splits of one query and head."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    unit = token // queries
    low, high = tl.load(ranges_ptr + 3 * units + unit), tl.load(ranges_ptr + 4 * units + unit)
    first, part = _share(low, high, splits, least, BLOCK_N)
    split, e = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_E)
    used = (split == 0) | ((first + split * part < high) & (split < splits))
    at = (split.to(tl.int64) * tokens + token) * HQ + head
    top = tl.load(tops_ptr + at, mask=used, other=NOTHING)
    weight = tl.where(used, tl.exp2(top - tl.max(top, 0)), 0.0)
    total = tl.sum(tl.load(totals_ptr + at, mask=used, other=0.0) * weight, 0)
    keep = used[:, None] & (e < E)[None, :]
    acc = tl.sum(tl.load(parts_ptr + at[:, None] * E + e[None, :], mask=keep, other=0.0) * weight[:, None], 0)
    out = acc / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + (token * HQ + head) * E + e, out.to(out_ptr.dtype.element_ty), mask=e < E)


def attention(
    qk: Tensor,
    qkv: Tensor,
    prefix: tuple[Tensor, Tensor] | None,
    ranges: Tensor,
    heads: Heads,
    blocks: Blocks | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Attention of every unit to its range of the prefix and to itself: [N, HQ·E].

    Args:
        qk: [N, (HQ + HK)·E] from `norm_rope`. qkv: [N, (HQ + 2·HK)·E]; only the values are read.
        prefix: keys and values [B, P, HK, E], or None.
        ranges: [7, U] int32, see `attention_ranges.Range`.
        blocks: for units of whole blocks: which blocks see which.
        tiles: if others than `attention_tiles` chooses.
    """
    units = ranges.shape[1]
    (tokens, _), columns = qk.shape, prefix[0].shape[1] if prefix is not None else 0
    queries, rows = tokens // units, tokens // units * (heads.queries // heads.keys)
    tiles = tiles or attention_tiles(rows, heads, units, columns, qk)
    if tiles.few:
        return attend_few_rows(qk, qkv, prefix, ranges, heads, blocks, tiles)
    out = torch.empty(tokens, heads.queries * heads.size, dtype=qk.dtype, device=qk.device)
    keys, values = prefix if prefix is not None else (qk, qk)
    parts, tops, totals = out, out, out
    if tiles.splits > 1:
        parts = torch.empty(tiles.splits, *out.shape, dtype=torch.float32, device=qk.device)
        tops, totals = torch.empty(2, tiles.splits, tokens, heads.queries, dtype=torch.float32, device=qk.device)
    block_e = max(16, triton.next_power_of_2(heads.size))
    _attention[(triton.cdiv(rows, tiles.rows), units * heads.keys, tiles.splits)](
        qk, qkv, keys, values, parts, tops, totals,
        ranges, units, queries, columns, *(blocks or Blocks(1, 0, 0)), tiles.splits, tiles.least,
        heads.size**-0.5 * LOG2_E,
        HQ=heads.queries, HK=heads.keys, E=heads.size, BLOCK_E=block_e,
        BLOCK_M=tiles.rows, BLOCK_N=tiles.columns, PREFIX=prefix is not None, CAUSAL=blocks is not None,
        SPLIT=tiles.splits > 1, PRECISION="ieee" if qk.dtype == torch.float32 else "tf32",
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    if tiles.splits > 1:
        few = tiles.splits <= FEW_SPLITS  # two sizes only, so that few kernels are compiled
        _join[(tokens, heads.queries)](
            parts, tops, totals, out, ranges, units, queries, tokens, tiles.splits, tiles.least,
            HQ=heads.queries, E=heads.size, BLOCK_E=block_e, BLOCK_N=tiles.columns,
            BLOCK_S=FEW_SPLITS if few else MOST_SPLITS, num_warps=1 if few else 4,
        )  # fmt: skip
    return out
