"""Triton kernels of the sampler's forward pass: what stands between the matrix products of a Qwen3 layer.

Every one is a plain function of tensors, launched on the current stream, safe to capture in a CUDA graph. Sums are in
float32; where Qwen3 rounds to the model's type between two operations, so do they. Shapes: N tokens, D hidden size,
HQ query heads, HK key/value heads, E head size, U units of Q queries each (N = U·Q), B rows and P columns of a prefix,
I intermediate size.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

NOTHING = tl.constexpr(-1.0e30)  # a score below all others that, unlike -inf, can be subtracted from itself


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
    qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, out_ptr, eps,
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
    cos = tl.load(cos_ptr + token * E + e, mask=e < E, other=0.0)
    sin = tl.load(sin_ptr + token * E + e, mask=e < E, other=0.0)
    rotated = x * cos + tl.where(e < E // 2, -y, y) * sin
    tl.store(out_ptr + token * (HQ + HK) * E + head * E + e, rotated.to(kind), mask=keep)


def norm_rope(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float, *, heads: int, kv_heads: int
) -> Tensor:
    """Normalised and rotated queries and keys [N, (HQ + HK)·E] of qkv [N, (HQ + 2·HK)·E]; cos, sin [N, E] float32."""
    size = q_weight.shape[0]
    out = torch.empty(qkv.shape[0], (heads + kv_heads) * size, dtype=qkv.dtype, device=qkv.device)
    _norm_rope[(qkv.shape[0],)](
        qkv, q_weight, k_weight, cos, sin, out, eps,
        HQ=heads, HK=kv_heads, E=size,
        HEADS=triton.next_power_of_2(heads + kv_heads), BLOCK_E=triton.next_power_of_2(size), num_warps=4,
    )  # fmt: skip
    return out


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Which keys each unit sees. All int32."""

    own_low: Tensor  # [U] first and
    own_high: Tensor  # [U] last + 1 of its own keys
    owner: Tensor | None = None  # [U] row of the prefix
    low: Tensor | None = None  # [U] first and
    high: Tensor | None = None  # [U] last + 1 key of the prefix,
    skip_low: Tensor | None = None  # [U] except from here
    skip_high: Tensor | None = None  # [U] to before here


@triton.jit
def _attend(
    q, acc, top, total, k_ptr, v_ptr, k_stride, v_stride, n, visible, scale,
    E: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys: the running maximum, sum and weighted values of FlashAttention (arXiv 2205.14135)."""
    e = tl.arange(0, BLOCK_E)
    keep = visible[:, None] & (e < E)[None, :]
    n = n.to(tl.int64)
    k = tl.load(k_ptr + n[:, None] * k_stride + e[None, :], mask=keep, other=0.0)
    v = tl.load(v_ptr + n[:, None] * v_stride + e[None, :], mask=keep, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(visible[None, :], scores, NOTHING)
    higher = tl.maximum(top, tl.max(scores, 1))
    decay = tl.exp(top - higher)
    p = tl.exp(scores - higher[:, None])
    acc = acc * decay[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    return acc, higher, total * decay + tl.sum(p, 1)


@triton.jit
def _attention(
    qk_ptr, qkv_ptr, keys_ptr, values_ptr, out_ptr,
    own_low_ptr, own_high_ptr, owner_ptr, low_ptr, high_ptr, skip_low_ptr, skip_high_ptr,
    queries, prefix_columns, scale,
    HQ: tl.constexpr, HK: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PREFIX: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of the queries of all heads that share one key/value head, of one unit."""
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
        first = tl.load(owner_ptr + unit).to(tl.int64) * prefix_columns * HK * E + kv * E
        low, high = tl.load(low_ptr + unit), tl.load(high_ptr + unit)
        skip_low, skip_high = tl.load(skip_low_ptr + unit), tl.load(skip_high_ptr + unit)
        for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
            n = start + column
            visible = (n >= low) & (n < high) & ((n < skip_low) | (n >= skip_high))
            acc, top, total = _attend(
                q, acc, top, total, keys_ptr + first, values_ptr + first, HK * E, HK * E, n, visible, scale,
                E, BLOCK_E, PRECISION,
            )  # fmt: skip
    own_k = qk_ptr + unit * queries * q_row + (HQ + kv) * E
    own_v = qkv_ptr + unit * queries * v_row + (HQ + HK + kv) * E
    low, high = tl.load(own_low_ptr + unit), tl.load(own_high_ptr + unit)
    for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        n = start + column
        acc, top, total = _attend(
            q, acc, top, total, own_k, own_v, q_row, v_row, n, (n >= low) & (n < high), scale, E, BLOCK_E, PRECISION
        )
    out = acc / total[:, None]
    at = out_ptr + (unit * queries + query)[:, None] * (HQ * E) + head[:, None] * E + e[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=keep)


def attention(
    qk: Tensor, qkv: Tensor, prefix: tuple[Tensor, Tensor] | None, ranges: Ranges, *, heads: int, kv_heads: int
) -> Tensor:
    """Attention of every unit to its part of a prefix and to itself: [N, HQ·E].

    Args:
        qk: [N, (HQ + HK)·E] from `norm_rope`. qkv: [N, (HQ + 2·HK)·E], of which the values are read.
        prefix: keys and values [B, P, HK, E], or None.
    """
    units, size = ranges.own_low.shape[0], qk.shape[1] // (heads + kv_heads)
    queries, group = qk.shape[0] // units, heads // kv_heads
    out = torch.empty(qk.shape[0], heads * size, dtype=qk.dtype, device=qk.device)
    wide = qk.dtype == torch.float32  # tiles of float32 need twice the shared memory
    block_m = min(32 if wide else 64, max(16, triton.next_power_of_2(queries * group)))
    keys, values = prefix if prefix is not None else (qk, qk)
    own = ranges.own_low
    _attention[(triton.cdiv(queries * group, block_m), units * kv_heads)](
        qk, qkv, keys, values, out,
        own, ranges.own_high,
        *(own if x is None else x for x in (ranges.owner, ranges.low, ranges.high, ranges.skip_low, ranges.skip_high)),
        queries, keys.shape[1] if prefix is not None else 0, size**-0.5,
        HQ=heads, HK=kv_heads, E=size, BLOCK_E=max(16, triton.next_power_of_2(size)),
        BLOCK_M=block_m, BLOCK_N=32 if wide else 64,
        PREFIX=prefix is not None, PRECISION="ieee" if wide else "tf32", num_warps=4, num_stages=2,
    )  # fmt: skip
    return out


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
