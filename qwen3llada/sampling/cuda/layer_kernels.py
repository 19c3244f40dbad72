"""Triton kernels of the sampler's forward pass: what stands between the matrix products of a Qwen3 layer.

Every one is a plain function of tensors, launched on the current stream, safe to capture in a CUDA graph. Sums are in
float32; where Qwen3 rounds to the model's type between two operations, so do they. Shapes: N tokens, D hidden size,
HQ query heads, HK key/value heads, E head size, U units of Q queries each (N = U·Q), B rows and P columns of a prefix,
I intermediate size.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

NOTHING = tl.constexpr(-1.0e30)  # a score below all others that, unlike -inf, can be subtracted from itself


class Heads(NamedTuple):
    """Numbers of query and key/value heads, and their size."""

    queries: int
    keys: int
    size: int


class Angles(NamedTuple):
    """Rotary embedding of every position: [positions, E/2] float32 each. Both halves of a head turn alike."""

    cos: Tensor
    sin: Tensor


@triton.jit
def _rms_norm(x_ptr, weight_ptr, out_ptr, size, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    keep = column < size
    x = tl.load(x_ptr + row * size + column, mask=keep, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / size + eps)
    normed = (x * scale).to(out_ptr.dtype.element_ty).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=keep, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + column, (normed * weight).to(out_ptr.dtype.element_ty), mask=keep)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of x [N, D]."""
    out = torch.empty_like(x)
    _rms_norm[(x.shape[0],)](x, weight, out, x.shape[1], eps, BLOCK=triton.next_power_of_2(x.shape[1]), num_warps=4)
    return out


@triton.jit
def _norm_rope(
    qkv_ptr, q_weight_ptr, k_weight_ptr, positions_ptr, cos_ptr, sin_ptr, out_ptr, eps,
    HQ: tl.constexpr, HK: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    kind = out_ptr.dtype.element_ty
    head = tl.arange(0, HEADS)[:, None]
    e = tl.arange(0, BLOCK_E)[None, :]
    keep = (head < HQ + HK) & (e < E)
    partner = tl.where(e < E // 2, e + E // 2, e - E // 2)  # rotate_half swaps the halves
    row = qkv_ptr + token * (HQ + 2 * HK) * E + head * E
    x = tl.load(row + e, mask=keep, other=0.0).to(tl.float32)
    y = tl.load(row + partner, mask=keep, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / E + eps)[:, None]
    query, key = keep & (head < HQ), keep & (head >= HQ)
    at, other = e + head * 0, partner + head * 0
    x_weight = tl.load(q_weight_ptr + at, mask=query, other=0.0) + tl.load(k_weight_ptr + at, mask=key, other=0.0)
    y_weight = tl.load(q_weight_ptr + other, mask=query, other=0.0) + tl.load(k_weight_ptr + other, mask=key, other=0.0)
    x = ((x * scale).to(kind).to(tl.float32) * x_weight.to(tl.float32)).to(kind).to(tl.float32)
    y = ((y * scale).to(kind).to(tl.float32) * y_weight.to(tl.float32)).to(kind).to(tl.float32)
    angle = tl.load(positions_ptr + token).to(tl.int64) * (E // 2) + e % (E // 2)
    cos = tl.load(cos_ptr + angle, mask=e < E, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=e < E, other=0.0)
    rotated = x * cos + tl.where(e < E // 2, -y, y) * sin
    tl.store(out_ptr + token * (HQ + HK) * E + head * E + e, rotated.to(kind), mask=keep)


def norm_rope(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, positions: Tensor, angles: Angles, eps: float, heads: Heads
) -> Tensor:
    """Normalised and rotated queries and keys [N, (HQ + HK)·E] of qkv [N, (HQ + 2·HK)·E] at positions [N] int32."""
    out = torch.empty(qkv.shape[0], (heads.queries + heads.keys) * heads.size, dtype=qkv.dtype, device=qkv.device)
    _norm_rope[(qkv.shape[0],)](
        qkv, q_weight, k_weight, positions, angles.cos, angles.sin, out, eps,
        HQ=heads.queries, HK=heads.keys, E=heads.size,
        HEADS=triton.next_power_of_2(heads.queries + heads.keys), BLOCK_E=triton.next_power_of_2(heads.size),
        num_warps=4,
    )  # fmt: skip
    return out


class Range(IntEnum):
    """What each unit sees, as the rows of a tensor [7, U] int32. A range ends before its `HIGH`."""

    OWN_LOW = 0  # of its own keys
    OWN_HIGH = 1
    OWNER = 2  # row of the prefix
    LOW = 3  # of that row's keys
    HIGH = 4
    SKIP_LOW = 5  # except for these
    SKIP_HIGH = 6


@triton.jit
def _attend(
    q, acc, top, total, k_ptr, v_ptr, k_stride, v_stride, n, visible, first, last, scale,
    E: tl.constexpr, BLOCK_E: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys: the running maximum, sum and weighted values of FlashAttention (arXiv 2205.14135).

    CAUSAL: a query sees keys from its `first` to before its `last` only.
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
    """A tile of the queries of all heads that share one key/value head, of one unit.

    CAUSAL: the unit's queries are whole blocks, the last of which ends with the last query. A query sees those of its
    own keys that belong to its block and to the `window` blocks before it.
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
    """Whole blocks of tokens, each seen by itself and by the `window` blocks after it."""

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
    """Attention of every unit to its part of a prefix and to itself: [N, HQ·E].

    Args:
        qk: [N, (HQ + HK)·E] from `norm_rope`. qkv: [N, (HQ + 2·HK)·E], of which the values are read.
        prefix: keys and values [B, P, HK, E], or None.
        ranges: [7, U] int32, see `Range`.
        blocks: how a unit sees itself where it is made of blocks, the last of which ends with its last token.
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
    """Sizes of the attention kernel's tiles, and how it is compiled."""

    rows: int
    columns: int
    warps: int = 4
    stages: int = 2


def attention_tiles(rows: int, heads: int, long: bool, like: Tensor) -> Tiles:
    """The tiles that were fastest on an H200: `rows` of queries in each of `heads` (units times key/value heads)."""
    fitting = max(16, triton.next_power_of_2(rows))
    if like.dtype == torch.float32:  # needs twice the shared memory
        return Tiles(min(32, fitting), 32)
    if long:
        return Tiles(min(64, fitting), 128, warps=8)
    multiprocessors = torch.cuda.get_device_properties(like.device).multi_processor_count if like.is_cuda else 1
    few = triton.cdiv(rows, 64) * heads < 2 * multiprocessors
    return Tiles(min(32 if few else 64, fitting), 64)


@triton.jit
def _gated(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = column < size
    gate = tl.load(x_ptr + row * 2 * size + column, mask=keep, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * size + size + column, mask=keep, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    active = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(out_ptr + row * size + column, (active * up).to(kind), mask=keep)


def gated(x: Tensor) -> Tensor:
    """silu(gate)·up [N, I] of x = [gate, up] [N, 2·I]."""
    size = x.shape[1] // 2
    out = torch.empty(x.shape[0], size, dtype=x.dtype, device=x.device)
    _gated[(x.shape[0], triton.cdiv(size, 1024))](x, out, size, BLOCK=1024, num_warps=4)
    return out
