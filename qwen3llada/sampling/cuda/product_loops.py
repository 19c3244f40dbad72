"""The loops of a matrix product in Triton: sums of one tile of x [N, K] times w [O, K].

Where GATED, w is [2·O, K], and the second sums are those with the same rows of its second half. Shapes: see
`product_kernels.py`.
"""

import triton
import triton.language as tl


@triton.jit
def tile_sums(
    x, w, m, n, tokens, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, STAGES: tl.constexpr, SLICES: tl.constexpr, BULK: tl.constexpr, GATED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """First and second sums [ROWS, COLUMNS] float32 of tokens m and outputs n. Arguments: see `_product`."""
    if BULK:
        first, second = _bulk(x, w, INPUTS, OUTPUTS, ROWS, COLUMNS, DEPTH, STAGES, GATED, PRECISION)
    elif SLICES > 1:
        first, second = _sliced(
            x, w, m, n, tokens, INPUTS, ROWS, COLUMNS, DEPTH, STAGES, SLICES, GATED, PRECISION
        )  # fmt: skip
    else:
        first, second = _plain(
            x, w, m, n, tokens, INPUTS, OUTPUTS, ROWS, COLUMNS, DEPTH, STAGES, GATED, PRECISION
        )  # fmt: skip
    return first, second


@triton.jit
def _plain(
    x_ptr, w_ptr, m, n, tokens, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, STAGES: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One loop over the inputs."""
    keep = (m < tokens)[:, None]
    k = tl.arange(0, DEPTH)
    x_at, w_at = x_ptr + m[:, None] * INPUTS + k[None, :], w_ptr + n[None, :] * INPUTS + k[:, None]
    first, second = tl.zeros([ROWS, COLUMNS], dtype=tl.float32), tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in tl.range(0, INPUTS, DEPTH, num_stages=STAGES):
        x = tl.load(x_at + start, mask=keep, other=0.0)
        first = tl.dot(x, tl.load(w_at + start), first, input_precision=PRECISION)
        if GATED:
            second = tl.dot(x, tl.load(w_at + OUTPUTS * INPUTS + start), second, input_precision=PRECISION)
    return first, second


@triton.jit
def _sliced(
    x_ptr, w_ptr, m, n, tokens, INPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr, SLICES: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Each slice of a tile's inputs is a product of its own, so that no warp has a long chain of them."""
    tl.static_assert(not GATED)
    SLICE: tl.constexpr = DEPTH // SLICES
    begin, k = tl.arange(0, SLICES)[:, None, None] * SLICE, tl.arange(0, SLICE)
    keep = (m < tokens)[None, :, None]
    x_at = x_ptr + m[None, :, None] * INPUTS + begin + k[None, None, :]
    w_at = w_ptr + n[None, None, :] * INPUTS + begin + k[None, :, None]
    sums = tl.zeros([SLICES, ROWS, COLUMNS], dtype=tl.float32)
    for start in tl.range(0, INPUTS, DEPTH, num_stages=STAGES):
        x = tl.load(x_at + start, mask=keep, other=0.0)
        sums = tl.dot(x, tl.load(w_at + start), sums, input_precision=PRECISION)
    return tl.sum(sums, 0), tl.zeros([ROWS, COLUMNS], dtype=tl.float32)


@triton.jit
def _bulk(
    x, w, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr, GATED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x and w are tensor descriptors, whose tiles the copy engine loads."""
    row, column = tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS
    first, second = tl.zeros([ROWS, COLUMNS], dtype=tl.float32), tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in tl.range(0, INPUTS, DEPTH, num_stages=STAGES):
        tile = x.load([row, start])
        first = tl.dot(tile, w.load([column, start]).T, first, input_precision=PRECISION)
        if GATED:
            second = tl.dot(tile, w.load([OUTPUTS + column, start]).T, second, input_precision=PRECISION)
    return first, second
