"""Matrix products of few tokens in Triton, with the norm before them and what follows them in one kernel.

A pass of a few blocks is bound by the number of its kernels, not by arithmetic: here three kernels do what eight do
otherwise. RMSNorm's weight multiplies the tokens before the product and its scale the result after it, so that one read
of the tokens gives both; in float32 that is the same up to rounding, in bfloat16 it rounds at another place. Shapes: N
tokens, D hidden size, I intermediate size, HQ query heads, HK key/value heads, E head size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3llada.sampling.cuda.layer_kernels import Angles, Heads, Store
from qwen3llada.sampling.cuda.overlap import begin, overlapped

DEPTH = 64  # of a tile along D
MOST_TOKENS = 0  # beyond this, separate matrix products are faster


def fits(tokens: int, hidden: int, intermediate: int, heads: Heads) -> bool:
    """Whether these kernels take the shapes, and are faster."""
    half = heads.size // 2
    sizes = hidden, intermediate, heads.queries * heads.size
    whole = all(size % DEPTH == 0 for size in sizes) and half >= 16 and half & (half - 1) == 0
    return tokens <= MOST_TOKENS and whole


@triton.jit
def _normed(x_ptr, weight_ptr, token, tokens, k, D: tl.constexpr):
    """A tile of tokens times the norm's weight, in the model's type, and the sums of the tokens' squares."""
    x = tl.load(x_ptr + token[:, None] * D + k[None, :], mask=(token < tokens)[:, None], other=0.0)
    weight = tl.load(weight_ptr + k).to(tl.float32)
    wide = x.to(tl.float32)
    return (wide * weight[None, :]).to(x.dtype), tl.sum(wide * wide, 1)


@triton.jit(do_not_specialize=["tokens", "eps"])
def _norm_gate_up(
    x_ptr, norm_ptr, weight_ptr, out_ptr, tokens, eps,
    D: tl.constexpr, INNER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """silu(gate)·up of normalised tokens, for BLOCK_N of the I columns."""
    token = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    kind = out_ptr.dtype.element_ty
    begin(OVERLAP)
    gate, up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x, square = _normed(x_ptr, norm_ptr, token, tokens, k, D)
        squares += square
        at = weight_ptr + column[:, None] * D + k[None, :]
        gate = tl.dot(x, tl.trans(tl.load(at)), gate, input_precision=PRECISION)
        up = tl.dot(x, tl.trans(tl.load(at + INNER * D)), up, input_precision=PRECISION)
    scale = tl.rsqrt(squares / D + eps)[:, None]
    opened, through = (gate * scale).to(kind).to(tl.float32), (up * scale).to(kind).to(tl.float32)
    active = (opened / (1.0 + tl.exp(-opened))).to(kind).to(tl.float32)
    there = (token < tokens)[:, None]
    tl.store(out_ptr + token[:, None] * INNER + column[None, :], (active * through).to(kind), mask=there)


def norm_gate_up(x: Tensor, norm: Tensor, weight: Tensor, eps: float) -> Tensor:
    """silu(gate)·up [N, I] of [gate, up] = RMSNorm(x)·weightᵀ, for x [N, D] and weight [2·I, D]."""
    (tokens, hidden), inner = x.shape, weight.shape[0] // 2
    out = torch.empty(tokens, inner, dtype=x.dtype, device=x.device)
    height, width = (16, 32) if tokens <= 16 else (32, 32) if tokens <= 32 else (64, 32 if tokens <= 128 else 64)
    _norm_gate_up[(inner // width, triton.cdiv(tokens, height))](
        x, norm, weight, out, tokens, eps,
        D=hidden, INNER=inner, BLOCK_M=height, BLOCK_N=width, BLOCK_K=DEPTH, PRECISION=_precision(x),
        num_warps=4, num_stages=_stages(x), **overlapped(),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens", "eps", "queries", "stored", "columns"])
def _norm_qkv(
    x_ptr, norm_ptr, weight_ptr, bias_ptr, q_norm_ptr, k_norm_ptr, positions_ptr, cos_ptr, sin_ptr, qk_ptr, qkv_ptr,
    keys_ptr, values_ptr, rows_ptr, columns_ptr, tokens, eps, queries, stored, columns,
    D: tl.constexpr, HQ: tl.constexpr, HK: tl.constexpr, HALF: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BIASED: tl.constexpr, STORE: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One head of normalised tokens, in two halves: a query or key, normalised and rotated, or a value."""
    head = tl.program_id(0)
    token = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    e = tl.arange(0, HALF)
    kind = qk_ptr.dtype.element_ty
    E: tl.constexpr = 2 * HALF
    begin(OVERLAP)
    first, second = tl.zeros((BLOCK_M, HALF), tl.float32), tl.zeros((BLOCK_M, HALF), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x, square = _normed(x_ptr, norm_ptr, token, tokens, k, D)
        squares += square
        at = weight_ptr + (head * E + e)[:, None] * D + k[None, :]
        first = tl.dot(x, tl.trans(tl.load(at)), first, input_precision=PRECISION)
        second = tl.dot(x, tl.trans(tl.load(at + HALF * D)), second, input_precision=PRECISION)
    scale = tl.rsqrt(squares / D + eps)[:, None]
    first, second = first * scale, second * scale
    if BIASED:
        first += tl.load(bias_ptr + head * E + e).to(tl.float32)[None, :]
        second += tl.load(bias_ptr + head * E + HALF + e).to(tl.float32)[None, :]
    first, second = first.to(kind), second.to(kind)
    there = (token < tokens)[:, None]
    if head < HQ + HK:
        a, b = first.to(tl.float32), second.to(tl.float32)
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / E + eps)[:, None]
        weights = tl.where(head < HQ, q_norm_ptr, k_norm_ptr)
        low, high = tl.load(weights + e).to(tl.float32)[None, :], tl.load(weights + HALF + e).to(tl.float32)[None, :]
        a = ((a * scale).to(kind).to(tl.float32) * low).to(kind).to(tl.float32)
        b = ((b * scale).to(kind).to(tl.float32) * high).to(kind).to(tl.float32)
        position = tl.load(positions_ptr + token, mask=token < tokens, other=0).to(tl.int64)
        angle = position[:, None] * HALF + e[None, :]
        cos, sin = tl.load(cos_ptr + angle), tl.load(sin_ptr + angle)
        first, second = (a * cos - b * sin).to(kind), (b * cos + a * sin).to(kind)
        out = qk_ptr + token[:, None] * ((HQ + HK) * E) + head * E + e[None, :]
    else:
        out = qkv_ptr + token[:, None] * ((HQ + 2 * HK) * E) + head * E + e[None, :]
    tl.store(out, first, mask=there)
    tl.store(out + HALF, second, mask=there)
    if STORE:  # noqa: SIM102  # known at compilation
        if head >= HQ:
            unit, place = token // queries, token % queries
            kept = (token < tokens) & (place < stored)
            row = tl.load(rows_ptr + unit, mask=kept, other=0)
            column = row * columns + tl.load(columns_ptr + place, mask=kept, other=0)
            key = head < HQ + HK
            to = tl.where(key, keys_ptr, values_ptr) + (head - tl.where(key, HQ, HQ + HK)) * E
            at = to + column[:, None] * (HK * E) + e[None, :]
            tl.store(at, first, mask=kept[:, None])
            tl.store(at + HALF, second, mask=kept[:, None])


def norm_qkv_rope(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    q_norm: Tensor,
    k_norm: Tensor,
    positions: Tensor,
    angles: Angles,
    eps: float,
    heads: Heads,
    store: Store | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries and keys [N, (HQ + HK)·E] as of `norm_rope`, and [N, (HQ + 2·HK)·E] of which only the values are set.

    Args:
        x: [N, D], before the layer's norm. weight: [(HQ + 2·HK)·E, D]. positions: [N] int32.
        store: where keys and values are also stored.
    """
    tokens, hidden = x.shape
    qkv = torch.empty(tokens, len(weight), dtype=x.dtype, device=x.device)
    qk = torch.empty(tokens, (heads.queries + heads.keys) * heads.size, dtype=x.dtype, device=x.device)
    queries, stored, columns = 1, 0, 0
    if store is not None:
        queries, stored, columns = tokens // len(store.rows), len(store.columns), store.keys.shape[1]
    height = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
    _norm_qkv[(heads.queries + 2 * heads.keys, triton.cdiv(tokens, height))](
        x, norm, weight, weight if bias is None else bias, q_norm, k_norm, positions, angles.cos, angles.sin, qk, qkv,
        *(store or (qk, qk, positions, positions)), tokens, eps, queries, stored, columns,
        D=hidden, HQ=heads.queries, HK=heads.keys, HALF=heads.size // 2, BLOCK_M=height, BLOCK_K=DEPTH,
        BIASED=bias is not None, STORE=store is not None, PRECISION=_precision(x), num_warps=4, num_stages=_stages(x),
        **overlapped(),
    )  # fmt: skip
    return qk, qkv


@triton.jit(do_not_specialize=["tokens"])
def _add_linear(
    x_ptr, a_ptr, weight_ptr, tokens,
    D: tl.constexpr, DEPTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    begin(OVERLAP)
    token = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = (token < tokens)[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, DEPTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + token[:, None] * DEPTH + k[None, :], mask=there, other=0.0)
        weight = tl.load(weight_ptr + column[:, None] * DEPTH + k[None, :])
        acc = tl.dot(a, tl.trans(weight), acc, input_precision=PRECISION)
    at = x_ptr + token[:, None] * D + column[None, :]
    tl.store(at, (tl.load(at, mask=there, other=0.0).to(tl.float32) + acc).to(x_ptr.dtype.element_ty), mask=there)


def add_linear(x: Tensor, a: Tensor, weight: Tensor) -> None:
    """x += a·weightᵀ in place, for x [N, D], a [N, K] and weight [D, K]."""
    (tokens, hidden), depth = x.shape, a.shape[1]
    height, width = (16, 16) if tokens <= 16 else (32, 16) if tokens <= 32 else (64, 32)
    _add_linear[(hidden // width, triton.cdiv(tokens, height))](
        x, a, weight, tokens,
        D=hidden, DEPTH=depth, BLOCK_M=height, BLOCK_N=width, BLOCK_K=128 if depth % 128 == 0 else DEPTH,
        PRECISION=_precision(x), num_warps=4, num_stages=_stages(x), **overlapped(),
    )  # fmt: skip


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"


def _stages(x: Tensor) -> int:
    return 2 if x.dtype == torch.float32 else 4
