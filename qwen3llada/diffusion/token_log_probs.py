"""Log-probabilities of tokens, to be differentiated, without storing all logits.

`fused_cross_entropy` needs the weight of each token before its forward pass. The weights of a policy gradient depend on
the log-probabilities themselves. So the forward pass here computes log-probabilities alone, and the backward pass
projects each chunk again. That is a third product of the projection, for memory that does not grow with the tokens.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from qwen3llada.diffusion.fused_cross_entropy import Products, logit_gradient_scale, matmul, rows_per_chunk, scaled


def token_log_probs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """log softmax(hidden @ weight.T) at the targets, and the entropy of each row's softmax.

    Precision and chunks are those of `fused_cross_entropy`.

    Args:
        hidden: [N, D] final hidden states. N may be 0.
        weight: [V, D] of the vocabulary projection.
        targets: [N] int64, in 0..V-1.
        chunk_size: rows projected at a time; None: chosen as in `fused_cross_entropy`.

    Returns: log-probabilities [N] float32 (float64 for float64 operands), and entropies [N] in nats, detached.
    """
    wanted = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, weight))
    return _TokenLogProbs.apply(hidden, weight, targets, chunk_size, wanted)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk_size, wanted):
        device = hidden.device.type
        ctx.operand = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.chunk_size, ctx.wanted = chunk_size, wanted
        ctx.save_for_backward(hidden, weight, targets)
        with torch.autocast(device, enabled=False):
            products = Products(hidden.to(ctx.operand), weight.to(ctx.operand), (False, False))
            log_probs, entropy = _log_probs(products, targets, chunk_size)
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_log_probs, _):
        hidden, weight, targets = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            products = Products(hidden.to(ctx.operand), weight.to(ctx.operand), ctx.wanted)
            # The cross-entropy is minus the log-probability.
            scale, unscale = logit_gradient_scale(-grad_log_probs.to(products.sums), products.dtype)
            products.run(targets, scale, 0.0, ctx.chunk_size)
            factor = torch.ones((), device=hidden.device) if unscale is None else unscale
            gradients = (
                scaled(products.grad_hidden, factor, hidden.dtype),
                scaled(products.grad_weight, factor, weight.dtype),
            )
        return *gradients, None, None, None


def _log_probs(products: Products, targets: Tensor, chunk_size: int | None) -> Tensor:
    """[2, N]: log-probabilities of the targets, and entropies."""
    hidden, weight = products.hidden, products.weight
    count, vocab = hidden.shape[0], weight.shape[0]
    rows = rows_per_chunk(count, vocab * products.dtype.itemsize, hidden.device.type, chunk_size)
    found = torch.zeros(2, count, dtype=products.sums, device=hidden.device)
    for start in range(0, count, rows):
        span = slice(start, min(start + rows, count))
        logits = hidden.new_empty(span.stop - span.start, vocab)
        matmul(hidden[span], weight.t(), out=logits)
        body = _of_logits if hidden.device.type == "cpu" else _compiled()
        found[:, span] = body(logits, targets[span], products.sums)
    return found


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """A kernel that reads the logits and makes no float32 copy of them."""
    return torch.compile(_of_logits)


def _of_logits(logits: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """[2, n] in `dtype`, of logits [n, V]."""
    log_q = logits.to(dtype).log_softmax(1)
    return torch.stack((log_q.gather(1, targets[:, None]).squeeze(1), -(log_q.exp() * log_q).sum(1)))
