"""The sampler's attention for few queries: one loop over large tiles of keys, which the warps of a program share.

With few queries there is little work, and a loop takes the time of its latencies, so it should have few iterations and
wait for memory once. Shapes: see `attention_kernel.py`. M rows are queries times query heads per key/value head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3llada.sampling.cuda.attention_ranges import Blocks
from qwen3llada.sampling.cuda.attention_steps import LOG2_E, NOTHING, keys_of_blocks, softmax_step
from qwen3llada.sampling.cuda.attention_tiles import Tiles
from qwen3llada.sampling.cuda.layer_kernels import Heads


@triton.jit
def _attend(
    q, acc, top, total, k, v, n, visible, first, last, scale, CAUSAL: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """One tile of keys n [N]. Only those that are `visible` are seen; where CAUSAL, from `first` to `last` [M]."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    seen = visible[None, :]
    if CAUSAL:
        seen = seen & (n[None, :] >= first[:, None]) & (n[None, :] < last[:, None])
    return softmax_step(acc, top, total, tl.where(seen, scores, NOTHING), v, PRECISION)


@triton.jit(do_not_specialize=["units", "queries", "block_length", "window", "shift"])
def _few_rows(
    qk_ptr, qkv_ptr, keys_ptr, values_ptr, out_ptr, ranges_ptr, units, queries, prefix_columns, block_length, window,
    shift, scale,
    HQ: tl.constexpr, HK: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_OWN: tl.constexpr, PREFIX: tl.constexpr, CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one unit, over all heads that share one key/value head. Arguments as of `_attention`.

    BLOCK_N keys of a tile of the prefix; BLOCK_OWN is at least the number of queries, so the unit's own keys are one
    tile.
    """
    GROUP: tl.constexpr = HQ // HK
    unit = (tl.program_id(1) // HK).to(tl.int64)
    kv = tl.program_id(1) % HK
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query = m // GROUP
    head = kv * GROUP + m % GROUP
    own = tl.arange(0, BLOCK_OWN)
    e = tl.arange(0, BLOCK_E)[None, :]
    keep = (query < queries)[:, None] & (e < E)
    own_visible = (own >= tl.load(ranges_ptr + unit)) & (own < tl.load(ranges_ptr + units + unit))
    token, own_token = unit * queries + query, unit * queries + own
    own_keep = own_visible[:, None] & (e < E)
    q_row = (HQ + HK) * E
    v_row = (HQ + 2 * HK) * E
    q = tl.load(qk_ptr + token[:, None] * q_row + head[:, None] * E + e, mask=keep, other=0.0)
    own_k = tl.load(qk_ptr + own_token[:, None] * q_row + (HQ + kv) * E + e, mask=own_keep, other=0.0)
    own_v = tl.load(qkv_ptr + own_token[:, None] * v_row + (HQ + HK + kv) * E + e, mask=own_keep, other=0.0)
    first, last = query, query
    if CAUSAL:
        first, last = keys_of_blocks(query, queries, block_length, window, shift)
    acc = tl.zeros([BLOCK_M, BLOCK_E], dtype=tl.float32)
    top = tl.full([BLOCK_M], NOTHING, dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc, top, total = _attend(
        q, acc, top, total, own_k, own_v, own, own_visible, first, last, scale, CAUSAL, PRECISION
    )  # fmt: skip
    if PREFIX:
        low, high = tl.load(ranges_ptr + 3 * units + unit), tl.load(ranges_ptr + 4 * units + unit)
        skip_low, skip_high = tl.load(ranges_ptr + 5 * units + unit), tl.load(ranges_ptr + 6 * units + unit)
        row = tl.load(ranges_ptr + 2 * units + unit).to(tl.int64) * prefix_columns * HK * E + kv * E
        for start in range(low, high, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            visible = (n < high) & ((n < skip_low) | (n >= skip_high))
            at = row + n.to(tl.int64)[:, None] * (HK * E) + e
            there = visible[:, None] & (e < E)
            k, v = tl.load(keys_ptr + at, mask=there, other=0.0), tl.load(values_ptr + at, mask=there, other=0.0)
            acc, top, total = _attend(
                q, acc, top, total, k, v, n, visible, high + first, high + last, scale, CAUSAL, PRECISION
            )  # fmt: skip
    out = acc / tl.where(total > 0, total, 1.0)[:, None]  # queries of padding may see nothing
    tl.store(out_ptr + token[:, None] * (HQ * E) + head[:, None] * E + e, out.to(out_ptr.dtype.element_ty), mask=keep)


def attend_few_rows(
    qk: Tensor,
    qkv: Tensor,
    prefix: tuple[Tensor, Tensor] | None,
    ranges: Tensor,
    heads: Heads,
    blocks: Blocks | None,
    tiles: Tiles,
) -> Tensor:
    """As `attention_kernel.attention`, for units of few queries."""
    (tokens, _), units, columns = qk.shape, ranges.shape[1], prefix[0].shape[1] if prefix is not None else 0
    queries, rows = tokens // units, tokens // units * (heads.queries // heads.keys)
    out = torch.empty(tokens, heads.queries * heads.size, dtype=qk.dtype, device=qk.device)
    _few_rows[(triton.cdiv(rows, tiles.rows), units * heads.keys)](
        qk, qkv, *(prefix or (qk, qk)), out, ranges, units, queries, columns, *(blocks or Blocks(1, 0, 0)),
        heads.size**-0.5 * LOG2_E,
        HQ=heads.queries, HK=heads.keys, E=heads.size, BLOCK_E=max(16, triton.next_power_of_2(heads.size)),
        BLOCK_M=tiles.rows, BLOCK_N=tiles.columns, BLOCK_OWN=max(16, triton.next_power_of_2(queries)),
        PREFIX=prefix is not None, CAUSAL=blocks is not None,
        PRECISION="ieee" if qk.dtype == torch.float32 else "tf32", num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out
