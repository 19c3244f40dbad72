"""Vocabulary projection and weighted cross-entropy in one pass, over chunks of tokens.

The logits of a chunk are overwritten by the gradient of the loss with respect to them. That gradient is multiplied into
the gradients of hidden states and projection before the next chunk reuses the buffer. So only one chunk of logits ever
exists, and the backward pass only scales what the forward pass computed.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qwen3llada.diffusion.tiled_cross_entropy import tiled_cross_entropy

# Bytes of one chunk of logits: 2,048 rows of Qwen3's vocabulary in bfloat16. On an accelerator larger chunks amortise
# the read and write of the float32 weight gradient better (twice the rows save 5 % of the time), but take more memory.
# On a CPU 200 rows are enough.
ACCELERATOR_CHUNK_BYTES = 600 * 2**20
CPU_CHUNK_BYTES = 128 * 2**20
# float16 has 5 bits of exponent, so the softmax over a large vocabulary would underflow. Logit gradients are stored
# multiplied by this, relative to the largest token weight, which keeps them below the largest float16 (65,504).
FLOAT16_SCALE = 2.0**15


def fused_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    *,
    smoothing: float = 0.0,
    chunk_size: int | None = None,
    return_per_token: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Weighted cross-entropy of `hidden @ weight.T` against `targets`, without storing all logits.

    Computes sum_i w_i·((1-s)·CE_i + s·mean_v(-log q_iv)), q_i the softmax of row i in float32, s the label smoothing of
    Szegedy et al. (arXiv 1512.00567, section 7). Under autocast both operands are rounded to its dtype. All sums
    (softmax, losses, both gradients) are float32, or float64 for float64 operands. Each gradient is rounded once, to
    its tensor's dtype. On a CPU half-precision operands are converted to float32, which is exact and much faster.

    Args:
        hidden: [N, D] final hidden states of the tokens in the loss. N may be 0: the loss and all gradients are then 0.
        weight: [V, D] of the vocabulary projection. If it is frozen, no gradient is computed for it.
        targets: [N] int64, true tokens, in 0..V-1.
        token_weights: [N] float32, w. Not differentiated.
        smoothing: s, in [0, 1).
        chunk_size: rows projected at a time; None fills `ACCELERATOR_CHUNK_BYTES` or `CPU_CHUNK_BYTES`.
        return_per_token: also return CE_i [N], unweighted, unsmoothed and detached.

    Raises:
        ValueError: a shape, dtype, smoothing or chunk size that does not fit.
    """
    _check(hidden, weight, targets, token_weights, smoothing, chunk_size)
    wanted = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight))
    loss, per_token = _FusedCrossEntropy.apply(hidden, weight, targets, token_weights, smoothing, chunk_size, wanted)
    return (loss, per_token) if return_per_token else loss


def _check(
    hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor, smoothing: float, chunk_size: int | None
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"{tuple(hidden.shape)=} and {tuple(weight.shape)=} must be [N, D] and [V, D]")
    for name, tensor in (("targets", targets), ("token_weights", token_weights)):
        if tensor.shape != hidden.shape[:1]:
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} must be [N] with N = {hidden.shape[0]}")
    if token_weights.requires_grad:
        raise ValueError("token_weights must not require a gradient: they are constants of the loss")
    if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
        raise ValueError(f"{hidden.dtype=} must be {weight.dtype=} outside autocast")
    if not 0 <= smoothing < 1:
        raise ValueError(f"{smoothing=} must be in [0, 1)")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"{chunk_size=} must be at least 1")


class _FusedCrossEntropy(torch.autograd.Function):
    """Computes gradients in the forward pass and scales them in the backward pass.

    Scaling is out of place, so that the graph can be retained. The copy does not raise the peak: the logits are freed.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, token_weights, smoothing, chunk_size, wanted):
        ctx.dtypes = (hidden.dtype, weight.dtype)
        device = hidden.device.type
        operand = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):  # all dtypes are chosen explicitly here
            products = Products(hidden.to(operand), weight.to(operand), wanted)
            token_weights = token_weights.to(products.sums)
            scale, unscale = logit_gradient_scale(token_weights, products.dtype)
            cross_entropy, smoothed = products.run(targets, scale, smoothing, chunk_size).unbind()
            total = (token_weights * smoothed).sum()
        ctx.save_for_backward(products.grad_hidden, products.grad_weight, unscale)
        ctx.mark_non_differentiable(cross_entropy)
        return total, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, _):
        grad_hidden, grad_weight, unscale = ctx.saved_tensors
        factor = grad_total if unscale is None else grad_total * unscale
        hidden_dtype, weight_dtype = ctx.dtypes
        gradients = (scaled(grad_hidden, factor, hidden_dtype), scaled(grad_weight, factor, weight_dtype))
        return *gradients, None, None, None, None, None


def scaled(gradient: Tensor | None, factor: Tensor, dtype: torch.dtype) -> Tensor | None:
    """gradient·factor, computed in the gradient's dtype and rounded once to `dtype`."""
    if gradient is None:
        return None
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))


def logit_gradient_scale(token_weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Factors [N] for the rows of logit gradients, and the scalar that undoes their scaling (None: no scaling)."""
    if dtype != torch.float16 or not token_weights.numel():
        return token_weights, None
    unscale = token_weights.abs().amax().clamp_min(torch.finfo(torch.float32).tiny) / FLOAT16_SCALE
    return token_weights / unscale, unscale


class Products:
    """The three matrix products of the projection, forward and backward, over chunks of rows."""

    def __init__(self, hidden: Tensor, weight: Tensor, wanted: tuple[bool, bool]):
        if hidden.device.type == "cpu" and hidden.dtype.itemsize < 4:
            hidden, weight = hidden.float(), weight.float()
        self.hidden, self.weight, self.dtype = hidden, weight, hidden.dtype
        self.tiled = hidden.device.type == "cpu" and not any(wanted)
        self.sums = torch.promote_types(self.dtype, torch.float32)
        none = hidden.shape[0] == 0  # no chunk will write the weight gradient
        make = torch.zeros_like if none else torch.empty_like
        self.grad_hidden = torch.empty_like(hidden, dtype=self.sums) if wanted[0] else None
        self.grad_weight = make(weight, dtype=self.sums) if wanted[1] else None

    def run(self, targets: Tensor, scale: Tensor, smoothing: float, chunk_size: int | None) -> Tensor:
        """Fill the gradients. Returns [2, N]: cross-entropies, plain and smoothed."""
        if self.tiled and chunk_size is None:
            return tiled_cross_entropy(self.hidden, self.weight, targets, smoothing)
        count, vocab = self.hidden.shape[0], self.weight.shape[0]
        rows = rows_per_chunk(count, vocab * self.dtype.itemsize, self.hidden.device.type, chunk_size)
        losses = torch.zeros(2, count, dtype=self.sums, device=self.hidden.device)
        buffer = self.hidden.new_empty(rows, vocab)
        for start in range(0, count, rows):
            span = slice(start, min(start + rows, count))
            logits = buffer[: span.stop - span.start]
            matmul(self.hidden[span], self.weight.t(), out=logits)
            losses[:, span] = _to_gradient(logits, targets[span], scale[span], smoothing)
            if self.grad_hidden is not None:
                matmul(logits, self.weight, out=self.grad_hidden[span])
            if self.grad_weight is not None:
                matmul(logits.t(), self.hidden[span], out=self.grad_weight, add=start > 0)
        return losses


def rows_per_chunk(count: int, row_bytes: int, device: str, chunk_size: int | None) -> int:
    """Rows per chunk, at least 1. Chunks are as equal as possible and none exceeds the limit."""
    chunk_bytes = CPU_CHUNK_BYTES if device == "cpu" else ACCELERATOR_CHUNK_BYTES
    limit = chunk_size or max(1, chunk_bytes // row_bytes)
    return max(1, math.ceil(count / max(1, math.ceil(count / limit))))


def matmul(left: Tensor, right: Tensor, *, out: Tensor, add: bool = False) -> None:
    """out = left @ right, or out += left @ right, summed in out's dtype."""
    if left.dtype == out.dtype:
        torch.addmm(out, left, right, beta=int(add), out=out)
    else:
        torch.addmm(out, left, right, out_dtype=out.dtype, beta=int(add), out=out)


def _to_gradient(logits: Tensor, targets: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    """Overwrite logits [n, V] by scale·d(loss)/d(logits). Returns losses [2, n] as `Products.run`."""
    if logits.device.type == "cuda":
        from qwen3llada.diffusion.softmax_gradient_kernel import softmax_gradient_  # needs Triton

        return softmax_gradient_(logits, targets, scale, smoothing)
    losses, at_target = _softmax_gradient_(logits, targets, scale, smoothing).split(2)
    logits.scatter_(1, targets[:, None], at_target.t().to(logits.dtype))
    return losses


def _softmax_gradient_(logits: Tensor, targets: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    """Overwrite logits [n, V] by scale·(q - smoothing/V), q their softmax.

    Returns [3, n]: cross-entropies, smoothed cross-entropies, and the gradients at the targets, for the caller to
    store. At the targets q - 1 must be rounded once, not q before the subtraction.
    """
    shifted = logits.to(scale.dtype)  # no copy if logits are float32 or wider: then everything below is in place
    shifted.sub_(shifted.amax(1, keepdim=True))
    at_target = shifted.gather(1, targets[:, None]).squeeze(1)
    mean = shifted.mean(1) if smoothing else at_target
    total = shifted.exp_().sum(1)
    per_class = smoothing / logits.shape[1]
    shifted.mul_((scale / total)[:, None])
    if smoothing:
        shifted.sub_((scale * per_class)[:, None])
    if shifted.dtype != logits.dtype:
        logits.copy_(shifted)
    gradient = scale * (at_target.exp() / total - per_class - (1 - smoothing))
    return torch.stack((total.log() - at_target, total.log() - torch.lerp(at_target, mean, smoothing), gradient))
