"""Triton kernels for a layer's matrix products of few tokens, with the norms, SwiGLU and residual sums inside.

A norm cannot be computed by a product before it: a program has only some columns of its result. So what follows the
residual sum is split. The product that adds to the residual also stores the sum times the norm's weights, and each
program's sum of squares. The next product multiplies its own result by the root of their mean.

Every program may start before the kernel before it has ended (`kernel_overlap.py`). Shapes: N tokens, K inputs and O
outputs of a product, D hidden size, I intermediate size, P programs that shared a row of the residual.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from qwen3llada.sampling.cuda.kernel_overlap import (
    launch_options,
    let_next_kernel_start,
    overlaps,
    wait_for_kernel_before,
)
from qwen3llada.sampling.cuda.product_loops import tile_sums


class Normed(NamedTuple):
    """A residual before the next product, as parts of its RMSNorm."""

    weighted: Tensor  # [N, D], the residual times the norm's weights
    squares: Tensor  # [N, P] float32, sums of squares of the residual


class Tile(NamedTuple):
    """Tokens, outputs and inputs of a tile, and compile options.

    slices: parts of the inputs that warps compute apart and then add up. bulk: whether tiles are loaded by the copy
    engine (TMA).
    """

    rows: int
    columns: int
    depth: int
    stages: int
    warps: int = 4
    slices: int = 1
    bulk: bool = False


@triton.jit
def _weigh(x_ptr, norm_ptr, weighted_ptr, squares_ptr, size, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    let_next_kernel_start(OVERLAP)
    wait_for_kernel_before(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    keep = column < size
    x = tl.load(x_ptr + row * size + column, mask=keep, other=0.0).to(tl.float32)
    norm = tl.load(norm_ptr + column, mask=keep, other=0.0).to(tl.float32)
    tl.store(weighted_ptr + row * size + column, (x * norm).to(weighted_ptr.dtype.element_ty), mask=keep)
    tl.store(squares_ptr + row, tl.sum(x * x, 0))


def weigh(x: Tensor, norm: Tensor) -> Normed:
    """x [N, D] as parts of its RMSNorm with the weights `norm` [D]."""
    weighted, squares = torch.empty_like(x), torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    block, overlap = triton.next_power_of_2(x.shape[1]), overlaps(x)
    _weigh[(len(x),)](x, norm, weighted, squares, x.shape[1], BLOCK=block, OVERLAP=overlap, **launch_options(overlap))
    return Normed(weighted, squares)


@triton.jit(do_not_specialize=["tokens"])
def _product(
    x, w, out_ptr, norm_ptr, weighted_ptr, squares_ptr, tokens, parts, eps,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr, SLICES: tl.constexpr, BULK: tl.constexpr, PARTS: tl.constexpr, GATED: tl.constexpr,
    ADD: tl.constexpr, OVERLAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of x [N, K] times w [O, K]. x and w are pointers, or tensor descriptors where BULK.

    PARTS: at least the number of `squares` of a token, by which the result is scaled; 0: it is not. GATED: w is
    [2·O, K], gate and up, and the result is silu(gate)·up. ADD: the result is added to `out`, and that sum is also
    stored as the parts of its norm.
    """
    let_next_kernel_start(OVERLAP)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    kind = out_ptr.dtype.element_ty
    keep = (m < tokens)[:, None]
    at = m[:, None] * OUTPUTS + n[None, :]
    if ADD:  # weights do not come from the kernel before, so they need not wait for it
        norm = tl.load(norm_ptr + n).to(tl.float32)
    wait_for_kernel_before(OVERLAP)
    if ADD:
        residual = tl.load(out_ptr + at, mask=keep, other=0.0).to(tl.float32)
    if PARTS:
        part = tl.arange(0, PARTS)[None, :]
        squares = tl.load(squares_ptr + m[:, None] * parts + part, mask=keep & (part < parts), other=0.0)
        scale = tl.rsqrt(tl.sum(squares, 1) / INPUTS + eps)[:, None]
    result, up = tile_sums(
        x, w, m, n, tokens, INPUTS, OUTPUTS, ROWS, COLUMNS, DEPTH, STAGES, SLICES, BULK, GATED, PRECISION
    )  # fmt: skip
    if PARTS:
        result = result * scale
    if GATED:
        gate, up = result.to(kind).to(tl.float32), (up * scale).to(kind).to(tl.float32)
        result = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32) * up
    if ADD:
        result += residual
    result = result.to(kind)
    tl.store(out_ptr + at, result, mask=keep)
    if ADD:
        total = result.to(tl.float32)
        tl.store(weighted_ptr + at, (total * norm[None, :]).to(kind), mask=keep)
        tl.store(squares_ptr + m * (OUTPUTS // COLUMNS) + tl.program_id(1), tl.sum(total * total, 1), mask=m < tokens)


def scaled_product(x: Normed, weight: Tensor, eps: float, tile: Tile, *, is_gated: bool = False) -> Tensor:
    """RMSNorm of x [N, D] by `weight` [O, D]: [N, O]. With `is_gated`: silu(gate)·up [N, I] of gate and up [2·I, D]."""
    out = x.weighted.new_empty(len(x.weighted), len(weight) // (2 if is_gated else 1))
    _run(x.weighted, weight, out, x, tile, eps=eps, is_gated=is_gated)
    return out


def add_product(x: Tensor, y: Tensor, weight: Tensor, norm: Tensor, tile: Tile) -> Normed:
    """Add y [N, K] times `weight` [D, K] to x [N, D], in place. Returns parts of the sum's RMSNorm by `norm` [D]."""
    squares = torch.empty(len(x), x.shape[1] // tile.columns, dtype=torch.float32, device=x.device)
    total = Normed(torch.empty_like(x), squares)
    _run(y, weight, x, total, tile, norm=norm)
    return total


def _run(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    parts: Normed,
    tile: Tile,
    *,
    eps: float = 0.0,
    is_gated: bool = False,
    norm: Tensor | None = None,
) -> None:
    """Write x times `weight` to `out`, scaled by the squares of `parts`. With `norm`: add it, and write `parts`."""
    (tokens, inputs), outputs, overlap = x.shape, out.shape[1], overlaps(x)
    operands: tuple[Tensor | TensorDescriptor, ...] = x, weight
    if tile.bulk:
        operands = tuple(
            TensorDescriptor.from_tensor(operand, [size, tile.depth])
            for operand, size in ((x, tile.rows), (weight, tile.columns))
        )
    adds, count = norm is not None, parts.squares.shape[1]
    _product[(triton.cdiv(tokens, tile.rows), outputs // tile.columns)](
        *operands, out, norm, *parts, tokens, count, eps,
        INPUTS=inputs, OUTPUTS=outputs, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, STAGES=tile.stages,
        SLICES=tile.slices, BULK=tile.bulk, PARTS=0 if adds else triton.next_power_of_2(count), GATED=is_gated,
        ADD=adds, OVERLAP=overlap,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32", num_warps=tile.warps, **launch_options(overlap),
    )  # fmt: skip
