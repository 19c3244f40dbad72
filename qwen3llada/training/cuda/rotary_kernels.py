"""RMSNorm of each head plus rotary embedding: one Triton kernel forward, one backward.

torch.compile generates about ten kernels for a layer's queries and keys, forward and backward, and each tensor is read
and written several times. These kernels read and write it once. Sums are in float32, and the result is rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

ROWS = 16  # heads of tokens per program and iteration
# Most programs of the backward pass: two waves on a Hopper GPU. Each sums its own part of the weight's gradient.
PROGRAMS = 1320


@triton.jit
def _load_normed(x_ptr, weight_ptr, row, rows, EPS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Both halves [R, E/2] of x / rms(x), 1 / rms(x) [R, 1], and both halves of the weight."""
    e = tl.arange(0, BLOCK)[None, :]
    keep = (row < rows)[:, None] & (e < HALF)
    at = row[:, None] * (2 * HALF) + e
    low = tl.load(x_ptr + at, mask=keep, other=0.0).to(tl.float32)
    high = tl.load(x_ptr + at + HALF, mask=keep, other=0.0).to(tl.float32)
    scale = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + EPS)[:, None]
    low_weight = tl.load(weight_ptr + e, mask=e < HALF, other=0.0).to(tl.float32)
    high_weight = tl.load(weight_ptr + e + HALF, mask=e < HALF, other=0.0).to(tl.float32)
    return low * scale, high * scale, scale, low_weight, high_weight


@triton.jit
def _load_angles(cos_ptr, sin_ptr, token, length, stride, keep, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """cos and sin [R, E/2] of the tokens' positions. Both halves of a head use the same angles."""
    at = ((token // length) * stride + (token % length) * (2 * HALF))[:, None] + tl.arange(0, BLOCK)[None, :]
    cos = tl.load(cos_ptr + at, mask=keep, other=0.0).to(tl.float32)
    return cos, tl.load(sin_ptr + at, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _forward(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, rows, length, angle_stride,
    EPS: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    e = tl.arange(0, BLOCK)[None, :]
    keep = (row < rows)[:, None] & (e < HALF)
    low, high, _, low_weight, high_weight = _load_normed(x_ptr, weight_ptr, row, rows, EPS, HALF, BLOCK)
    cos, sin = _load_angles(cos_ptr, sin_ptr, row // H, length, angle_stride, keep, HALF, BLOCK)
    low, high = low * low_weight, high * high_weight
    at = out_ptr + row[:, None] * (2 * HALF) + e
    tl.store(at, (low * cos - high * sin).to(out_ptr.dtype.element_ty), mask=keep)
    tl.store(at + HALF, (high * cos + low * sin).to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def _backward(
    grad_ptr, x_ptr, weight_ptr, cos_ptr, sin_ptr, grad_x_ptr, grad_weight_ptr,
    rows, length, angle_stride, batch_stride, token_stride, head_stride, programs,
    EPS: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    e = tl.arange(0, BLOCK)[None, :]
    low_sum = tl.zeros([R, BLOCK], tl.float32)
    high_sum = tl.zeros([R, BLOCK], tl.float32)
    for start in range(tl.program_id(0) * R, rows, programs * R):
        row = (start + tl.arange(0, R)).to(tl.int64)
        keep = (row < rows)[:, None] & (e < HALF)
        low, high, scale, low_weight, high_weight = _load_normed(x_ptr, weight_ptr, row, rows, EPS, HALF, BLOCK)
        token = row // H
        cos, sin = _load_angles(cos_ptr, sin_ptr, token, length, angle_stride, keep, HALF, BLOCK)
        at = (token // length) * batch_stride + (token % length) * token_stride + (row % H) * head_stride
        low_grad = tl.load(grad_ptr + at[:, None] + e, mask=keep, other=0.0).to(tl.float32)
        high_grad = tl.load(grad_ptr + at[:, None] + e + HALF, mask=keep, other=0.0).to(tl.float32)
        # backward through the rotation: its transpose
        low_grad, high_grad = low_grad * cos + high_grad * sin, high_grad * cos - low_grad * sin
        low_sum += low_grad * low
        high_sum += high_grad * high
        # backward through the norm: a change along x itself has no effect
        low_grad, high_grad = low_grad * low_weight, high_grad * high_weight
        along = ((tl.sum(low_grad * low, 1) + tl.sum(high_grad * high, 1)) / (2 * HALF))[:, None]
        at_x = grad_x_ptr + row[:, None] * (2 * HALF) + e
        tl.store(at_x, ((low_grad - low * along) * scale).to(grad_x_ptr.dtype.element_ty), mask=keep)
        tl.store(at_x + HALF, ((high_grad - high * along) * scale).to(grad_x_ptr.dtype.element_ty), mask=keep)
    at_weight = grad_weight_ptr + tl.program_id(0) * (2 * HALF) + tl.arange(0, BLOCK)
    tl.store(at_weight, tl.sum(low_sum, 0), mask=tl.arange(0, BLOCK) < HALF)
    tl.store(at_weight + HALF, tl.sum(high_sum, 0), mask=tl.arange(0, BLOCK) < HALF)


@triton_op("qwen3llada::norm_rotate", mutates_args=())
def norm_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """RMSNorm of each head (Zhang and Sennrich, arXiv 1910.07467), then rotary embedding (Su et al., arXiv 2104.09864),
    as Qwen3 applies them to queries and keys.

    Args:
        x: [B, L, H, E] on a GPU, contiguous. weight: [E] of the norm. eps: added to the mean square.
        cos, sin: [B or 1, L, E], each half alike.

    Returns: [B, L, H, E] of x's type. Differentiable in x and weight.
    """
    out = torch.empty_like(x)
    launch_forward(wrap_triton(_forward), x, weight, cos, sin, out, eps)
    return out


@triton_op("qwen3llada::norm_rotate_backward", mutates_args=())
def _norm_rotate_backward(
    grad: Tensor, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradient of x, and partial gradients of the weight [programs, E] float32 for the caller to sum."""
    grad_x = torch.empty_like(x)
    parts = torch.empty(programs_for(x), x.shape[-1], dtype=torch.float32, device=x.device)
    launch_backward(wrap_triton(_backward), grad, x, weight, cos, sin, grad_x, parts, eps)
    return grad_x, parts


def launch_forward(kernel, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, out: Tensor, eps: float) -> None:
    """Launch `_forward`. `kernel` is the Triton kernel or a wrapper around it."""
    grid = (triton.cdiv(_rows(x), ROWS),)
    kernel[grid](x, weight, cos, sin, out, _rows(x), x.shape[1], _angle_stride(cos), **_constants(x, eps))


def launch_backward(
    kernel, grad: Tensor, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, grad_x: Tensor, parts: Tensor, eps: float
) -> None:
    """Launch `_backward`. `kernel` is the Triton kernel or a wrapper around it."""
    kernel[(parts.shape[0],)](
        grad, x, weight, cos, sin, grad_x, parts, _rows(x), x.shape[1], _angle_stride(cos),
        grad.stride(0), grad.stride(1), grad.stride(2), parts.shape[0], **_constants(x, eps),
    )  # fmt: skip


def programs_for(x: Tensor) -> int:
    """Number of programs of the backward kernel."""
    return min(PROGRAMS, triton.cdiv(_rows(x), ROWS))


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def _angle_stride(cos: Tensor) -> int:
    """Elements from one batch row to the next; 0 if all rows share the same positions."""
    return 0 if cos.shape[0] == 1 else cos.shape[1] * cos.shape[2]


def _constants(x: Tensor, eps: float) -> dict[str, float]:
    # eps is a constexpr too: as an argument the compiler may treat it as float64, and all sums with it.
    half = x.shape[-1] // 2
    sizes = {"H": x.shape[2], "HALF": half, "BLOCK": triton.next_power_of_2(half), "R": ROWS}
    return {"EPS": eps, **sizes, "num_warps": 4}


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    x, weight, cos, sin = ctx.saved_tensors
    if grad.stride(-1) != 1:
        grad = grad.contiguous()
    grad_x, parts = _norm_rotate_backward(grad, x, weight, cos, sin, ctx.eps)
    return grad_x, parts.sum(0).to(weight.dtype), None, None, None


norm_rotate.register_autograd(_differentiate, setup_context=_setup)
