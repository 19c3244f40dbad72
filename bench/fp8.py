"""Matrix products of the decoder layers in 8-bit floating point, as `bench.train` and `bench.precision` try them.

Weights, activations and gradients are rounded anew for each product, each tensor with one scale that maps its largest
magnitude to the largest number of the format: e4m3 forward, e5m2 for gradients (Micikevicius et al., arXiv 2209.05433,
section 3). Products add up in float32 and give bfloat16. The projection to the vocabulary stays as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def rounded(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` in 8 bits, and the scale by which to multiply it: a float32 scalar."""
    scale = x.abs().amax().float().clamp(min=1e-12) / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype), scale


def by_columns(x: Tensor) -> Tensor:
    """`x` [R, C] with its columns one after the other in memory, as the right factor has to be."""
    return x.t().contiguous().t()


def product(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    """[M, K] by rows times [K, N] by columns, to bfloat16 [M, N]."""
    return torch._scaled_mm(left[0], right[0], scale_a=left[1], scale_b=right[1], out_dtype=torch.bfloat16)


class Product(torch.autograd.Function):
    """`x @ weight.T`: [T, K] and [N, K] to [T, N]. T, K and N must be multiples of 16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        (x8, x_scale), (weight8, weight_scale) = rounded(x, E4M3), rounded(weight, E4M3)
        ctx.save_for_backward(x8, x_scale, weight8, weight_scale)
        ctx.weight_dtype = weight.dtype
        return product((x8, x_scale), (weight8.t(), weight_scale))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_scale, weight8, weight_scale = ctx.saved_tensors
        gradient8, scale = rounded(gradient, E5M2)
        of_x = product((gradient8, scale), (by_columns(weight8), weight_scale))
        of_weight = product((gradient8.t().contiguous(), scale), (by_columns(x8), x_scale))
        return of_x, of_weight.to(ctx.weight_dtype)


def linear(self: nn.Linear, x: Tensor) -> Tensor:
    """`nn.Linear.forward` in 8 bits. As there, the result has the type of `x`, or under autocast 16 bits."""
    result = Product.apply(x.to(torch.bfloat16).flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])
    if not torch.is_autocast_enabled(x.device.type):
        result = result.to(x.dtype)
    return result if self.bias is None else result + self.bias.to(result.dtype)


@contextmanager
def in_8_bits() -> Iterator[None]:
    """Runs that start within this context compute their layers' products in 8 bits, forward and backward."""
    from qwen3llada.training.start import start

    compile_layers = start.compile_layers

    def convert(model: Any, *args: Any) -> Any:
        for module in model.model.layers.modules():
            if isinstance(module, nn.Linear):
                module.forward = MethodType(linear, module)
        return compile_layers(model, *args)

    with patch.object(start, "compile_layers", convert):
        yield
