"""The gradient of an embedding that is also the vocabulary projection, as one tensor.

Autograd makes two of the size of the vocabulary and adds them up, which only moves memory. The projection's gradient is
complete before the backward pass reaches the embedding, which can add the rows of its few tokens to it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class TiedGradient:
    """Of one forward pass and its backward pass. Shapes: V tokens of the vocabulary, hidden size D."""

    def __init__(self, embedding: nn.Embedding):
        self._embedding = embedding
        self._of_projection: Tensor | None = None  # [V, D], from the projection's backward pass to the embedding's

    def embed(self, tokens: Tensor) -> Tensor:
        """What the embedding gives for `tokens` [B, S]: [B, S, D]."""
        return _Embed.apply(self._embedding.weight, tokens, self)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """`states` [N, D], which must come from `embed`, and the weight [V, D], both for the projection.

        They go through one node of autograd's graph, so that its backward pass precedes the embedding's.
        """
        return _Project.apply(states, self._embedding.weight, self)

    def take(self) -> Tensor:
        """The projection's gradient [V, D], once. Raises RuntimeError if it was not differentiated."""
        gradient, self._of_projection = self._of_projection, None
        if gradient is None:
            raise RuntimeError("the embedding was differentiated and the projection that shares its weight was not")
        return gradient

    def keep(self, gradient: Tensor) -> None:
        """Hold the projection's gradient [V, D] for `take`."""
        self._of_projection = gradient

    @property
    def padding_idx(self) -> int | None:
        """The embedding's: the token whose row gets no gradient from it."""
        return self._embedding.padding_idx


def is_worthwhile(embedding: Any, projection: Tensor) -> bool:
    """Whether `TiedGradient` computes what autograd would, faster.

    Not in 16 bits, in which a sum of thousands of rows (the mask token's) would be rounded at each of them; not where
    the order of a sum must not change; and not on a CPU, which adds row by row.
    """
    plain = type(embedding) is nn.Embedding and embedding.weight is projection and not embedding._forward_hooks
    usual = plain and not (embedding.sparse or embedding.scale_grad_by_freq or embedding.max_norm)
    trained = projection.requires_grad and torch.is_grad_enabled()
    wide = projection.dtype == torch.float32 and projection.is_cuda
    return usual and trained and wide and not torch.are_deterministic_algorithms_enabled()


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, tokens, tied):
        ctx.save_for_backward(tokens)
        ctx.tied = tied
        return nn.functional.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (tokens,) = ctx.saved_tensors
        gradient = ctx.tied.take()
        if ctx.tied.padding_idx is not None:
            grad_output = grad_output.masked_fill((tokens == ctx.tied.padding_idx)[..., None], 0.0)
        return gradient.index_add_(0, tokens.flatten(), grad_output.flatten(0, -2)), None, None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, tied):
        ctx.tied = tied
        return states.view_as(states), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states, grad_weight):
        ctx.tied.keep(grad_weight)
        return grad_states, None, None
