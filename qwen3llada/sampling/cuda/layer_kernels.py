"""Triton kernels of the sampler's forward pass, for the operations between the matrix products of a Qwen3 layer.

Each function runs on the current stream and is safe to capture in a CUDA graph. Sums are in float32. Where Qwen3 rounds
to the model's type between two operations, the kernels round too. Shapes: N tokens, D hidden size, I intermediate size,
HQ query heads, HK key/value heads, E head size.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Heads(NamedTuple):
    """Number of query heads, number of key/value heads, and head size."""

    queries: int
    keys: int
    size: int


class Angles(NamedTuple):
    """Rotary cos and sin of every position, each [positions, E/2] float32; the same for both halves of a head."""

    cos: Tensor
    sin: Tensor


class Rotary(NamedTuple):
    """What `norm_rope` does to queries and keys: their norms [E], their positions [N] int32, and the angles."""

    q_weight: Tensor
    k_weight: Tensor
    positions: Tensor
    angles: Angles
    eps: float


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
def rotated_heads(
    row, e, keep, weight, partner_weight, position, cos_ptr, sin_ptr, eps, E: tl.constexpr, KIND: tl.constexpr
):  # fmt: skip
    """Normalised and rotated heads [R, E] at the pointers `row` [R, 1], of columns e [1, E], where `keep`.

    Weights of the norm: of each column and of its partner, with which rotation mixes it.
    """
    partner = partner_columns(e, E)
    x = tl.load(row + e, mask=keep, other=0.0).to(tl.float32)
    y = tl.load(row + partner, mask=keep, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / E + eps)[:, None]
    x = ((x * scale).to(KIND).to(tl.float32) * weight.to(tl.float32)).to(KIND).to(tl.float32)
    y = ((y * scale).to(KIND).to(tl.float32) * partner_weight.to(tl.float32)).to(KIND).to(tl.float32)
    angle = position.to(tl.int64) * (E // 2) + e % (E // 2)
    cos = tl.load(cos_ptr + angle, mask=e < E, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=e < E, other=0.0)
    return (x * cos + tl.where(e < E // 2, -y, y) * sin).to(KIND)


@triton.jit
def partner_columns(e, E: tl.constexpr):
    return tl.where(e < E // 2, e + E // 2, e - E // 2)  # rotate_half swaps the two halves of a head


@triton.jit(do_not_specialize=["queries"])
def _norm_rope(
    qkv_ptr, q_weight_ptr, k_weight_ptr, positions_ptr, cos_ptr, sin_ptr, out_ptr, eps,
    keys_ptr, values_ptr, firsts_ptr, counts_ptr, queries,
    HQ: tl.constexpr, HK: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr,
    BLOCK_E: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    kind = out_ptr.dtype.element_ty
    head = tl.arange(0, HEADS)[:, None]
    e = tl.arange(0, BLOCK_E)[None, :]
    keep = (head < HQ + HK) & (e < E)
    row = qkv_ptr + token * (HQ + 2 * HK) * E + head * E
    query, key = keep & (head < HQ), keep & (head >= HQ)
    at, other = e + head * 0, partner_columns(e, E) + head * 0
    weight = tl.load(q_weight_ptr + at, mask=query, other=0.0) + tl.load(k_weight_ptr + at, mask=key, other=0.0)
    partner_weight = tl.load(q_weight_ptr + other, mask=query, other=0.0)
    partner_weight += tl.load(k_weight_ptr + other, mask=key, other=0.0)
    position = tl.load(positions_ptr + token)
    rotated = rotated_heads(row, e, keep, weight, partner_weight, position, cos_ptr, sin_ptr, eps, E, kind)
    tl.store(out_ptr + token * (HQ + HK) * E + head * E + e, rotated, mask=keep)
    if STORE:
        unit, place = token // queries, token % queries
        if place < tl.load(counts_ptr + unit):
            to = (tl.load(firsts_ptr + unit) + place) * HK * E
            tl.store(keys_ptr + to + (head - HQ) * E + e, rotated, mask=key)
            key_head = tl.arange(0, KEY_HEADS)[:, None]
            there = (key_head < HK) & (e < E)
            value_row = qkv_ptr + token * (HQ + 2 * HK) * E + (HQ + HK + key_head) * E
            value = tl.load(value_row + e, mask=there, other=0.0)
            tl.store(values_ptr + to + key_head * E + e, value, mask=there)


class Store(NamedTuple):
    """Where keys and values of each unit's first tokens are stored."""

    keys: Tensor  # [B, P, HK, E]
    values: Tensor
    firsts: Tensor  # [U] int64, place of a unit's first token among the B·P
    counts: Tensor  # [U] int64, how many of its tokens are stored


def norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    positions: Tensor,
    angles: Angles,
    eps: float,
    heads: Heads,
    store: Store | None = None,
) -> Tensor:
    """Normalised and rotated queries and keys [N, (HQ + HK)·E] of qkv [N, (HQ + 2·HK)·E] at positions [N] int32.

    With `store`, these keys and the values are also stored there.
    """
    out = torch.empty(qkv.shape[0], (heads.queries + heads.keys) * heads.size, dtype=qkv.dtype, device=qkv.device)
    queries = 1 if store is None else qkv.shape[0] // len(store.firsts)
    _norm_rope[(qkv.shape[0],)](
        qkv, q_weight, k_weight, positions, angles.cos, angles.sin, out, eps,
        *(store or (out, out, positions, positions)), queries,
        HQ=heads.queries, HK=heads.keys, E=heads.size, HEADS=triton.next_power_of_2(heads.queries + heads.keys),
        KEY_HEADS=triton.next_power_of_2(heads.keys), BLOCK_E=triton.next_power_of_2(heads.size),
        STORE=store is not None, num_warps=4,
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
