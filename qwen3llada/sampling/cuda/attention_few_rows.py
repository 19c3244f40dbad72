"""The sampler's attention for few queries: one loop over large tiles of keys, which the warps of a program share.

With few queries, latency decides, not arithmetic. So the loop has few iterations, and its loads are issued ahead of
use. The kernel can also compute norm and rotary embedding and store keys and values, which saves a launch. Shapes: see
`attention_kernel.py`. M rows are queries times query heads per key/value head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3llada.sampling.cuda.attention_ranges import Blocks
from qwen3llada.sampling.cuda.attention_steps import LOG2_E, NOTHING, keys_of_blocks, softmax_step
from qwen3llada.sampling.cuda.attention_tiles import Tiles
from qwen3llada.sampling.cuda.kernel_overlap import (
    launch_options,
    let_next_kernel_start,
    overlaps,
    wait_for_kernel_before,
)
from qwen3llada.sampling.cuda.layer_kernels import Heads, Rotary, Store, partner_columns, rotated_heads


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
    shift, scale, q_weight_ptr, k_weight_ptr, positions_ptr, cos_ptr, sin_ptr, eps, to_keys_ptr, to_values_ptr,
    firsts_ptr, counts_ptr,
    HQ: tl.constexpr, HK: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_OWN: tl.constexpr, PREFIX: tl.constexpr, CAUSAL: tl.constexpr,
    FUSED: tl.constexpr, STORE: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one unit, over all heads that share one key/value head. Arguments as of `_attention`.

    BLOCK_N keys of a tile of the prefix; BLOCK_OWN is at least the number of queries, so the unit's own keys are one
    tile. FUSED: queries and keys are those of qkv, not yet normalised and rotated. Every program does so to all of the
    unit's own keys. STORE: the first one stores them, and their values.
    """
    let_next_kernel_start(OVERLAP)
    wait_for_kernel_before(OVERLAP)
    GROUP: tl.constexpr = HQ // HK
    unit = (tl.program_id(1) // HK).to(tl.int64)
    kv = tl.program_id(1) % HK
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query = m // GROUP
    head = kv * GROUP + m % GROUP
    own = tl.arange(0, BLOCK_OWN)
    e = tl.arange(0, BLOCK_E)[None, :]
    keep = (query < queries)[:, None] & (e < E)
    # Loaded before the unit's own keys are attended to. Otherwise the loop would begin by waiting for these loads.
    low, high = tl.load(ranges_ptr + 3 * units + unit), tl.load(ranges_ptr + 4 * units + unit)
    own_visible = (own >= tl.load(ranges_ptr + unit)) & (own < tl.load(ranges_ptr + units + unit))
    own_keep = (own < queries if FUSED else own_visible)[:, None] & (e < E)
    token, own_token = unit * queries + query, unit * queries + own
    v_row = (HQ + 2 * HK) * E
    q_row = v_row if FUSED else (HQ + HK) * E
    q_at = qk_ptr + token[:, None] * q_row + head[:, None] * E
    own_k_at = qk_ptr + own_token[:, None] * q_row + (HQ + kv) * E
    own_v = tl.load(qkv_ptr + own_token[:, None] * v_row + (HQ + HK + kv) * E + e, mask=own_keep, other=0.0)
    if FUSED:
        kind = qkv_ptr.dtype.element_ty
        partner = partner_columns(e, E)
        position = tl.load(positions_ptr + token, mask=query < queries, other=0)[:, None]
        own_position = tl.load(positions_ptr + own_token, mask=own < queries, other=0)[:, None]
        weight = tl.load(q_weight_ptr + e, mask=e < E, other=0.0)
        partner_weight = tl.load(q_weight_ptr + partner, mask=e < E, other=0.0)
        q = rotated_heads(q_at, e, keep, weight, partner_weight, position, cos_ptr, sin_ptr, eps, E, kind)
        weight = tl.load(k_weight_ptr + e, mask=e < E, other=0.0)
        partner_weight = tl.load(k_weight_ptr + partner, mask=e < E, other=0.0)
        own_k = rotated_heads(
            own_k_at, e, own_keep, weight, partner_weight, own_position, cos_ptr, sin_ptr, eps, E, kind
        )  # fmt: skip
        if STORE:
            count = tl.where(tl.program_id(0) == 0, tl.load(counts_ptr + unit), 0)
            stored = (own < count)[:, None] & (e < E)
            to = (tl.load(firsts_ptr + unit) + own)[:, None] * (HK * E) + kv * E + e
            tl.store(to_keys_ptr + to, own_k, mask=stored)
            tl.store(to_values_ptr + to, own_v, mask=stored)
        own_v = tl.where(own_visible[:, None], own_v, 0.0)
    else:
        q = tl.load(q_at + e, mask=keep, other=0.0)
        own_k = tl.load(own_k_at + e, mask=own_keep, other=0.0)
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
    rotary: Rotary | None = None,
    store: Store | None = None,
) -> Tensor:
    """As `attention_kernel.attention`, for units of few queries. With `rotary`, qk is qkv, and `norm_rope` is included.

    Nothing that is stored may be read in the same call.
    """
    (tokens, _), units, columns = qk.shape, ranges.shape[1], prefix[0].shape[1] if prefix is not None else 0
    queries, rows = tokens // units, tokens // units * (heads.queries // heads.keys)
    out = torch.empty(tokens, heads.queries * heads.size, dtype=qk.dtype, device=qk.device)
    overlap = overlaps(qk)
    norms = (qk, qk, ranges, qk, qk, 0.0) if rotary is None else (*rotary[:3], *rotary.angles, rotary.eps)
    _few_rows[(triton.cdiv(rows, tiles.rows), units * heads.keys)](
        qk, qkv, *(prefix or (qk, qk)), out, ranges, units, queries, columns, *(blocks or Blocks(1, 0, 0)),
        heads.size**-0.5 * LOG2_E, *norms, *(store or (out, out, ranges, ranges)),
        HQ=heads.queries, HK=heads.keys, E=heads.size, BLOCK_E=max(16, triton.next_power_of_2(heads.size)),
        BLOCK_M=tiles.rows, BLOCK_N=tiles.columns, BLOCK_OWN=max(16, triton.next_power_of_2(queries)),
        PREFIX=prefix is not None, CAUSAL=blocks is not None, FUSED=rotary is not None, STORE=store is not None,
        PRECISION="ieee" if qk.dtype == torch.float32 else "tf32", OVERLAP=overlap,
        num_warps=tiles.warps, num_stages=tiles.stages, **launch_options(overlap),
    )  # fmt: skip
    return out
