"""A layer's matrix products, with the norms, SwiGLU and residual sums beside them: the library's, or fused kernels.

Shapes: N tokens, D hidden size, I intermediate size, O outputs of a product.
"""

from typing import Any, Protocol

import triton
from torch import Tensor, nn

from qwen3llada.sampling.cuda.kernel_overlap import overlaps
from qwen3llada.sampling.cuda.layer_kernels import gated, rms_norm
from qwen3llada.sampling.cuda.product_kernels import Normed, Tile, add_product, scaled_product, weigh

DEEPEST = 512  # inputs of any tile below divide by this


def most_tokens(size: int) -> int:
    """Up to how many tokens the fused products of hidden size `size` are the faster ones: bench/products.py."""
    if size <= 1024:
        return 256
    return 32 if size <= 2048 else 16


class Products(Protocol):
    """What a layer does between attention and attention."""

    def normed(self, x: Tensor, norm: Tensor) -> Any:
        """RMSNorm of the residual x [N, D], in the form that the other methods read."""

    def project(self, normed: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
        """normed times `weight` [O, D], plus `bias` [O]: [N, O]."""

    def gated(self, normed: Any, gate_up: Tensor) -> Tensor:
        """silu(gate)·up [N, I] of normed times gate and up [2·I, D]."""

    def add(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor) -> Any:
        """Add y times `weight`, plus `bias`, to x [N, D] in place. Returns the sum's RMSNorm, as `normed`."""

    def states(self, x: Tensor, normed: Any, norm: Tensor) -> Tensor:
        """The RMSNorm `normed` of x as a tensor [N, D]."""


class LibraryProducts:
    """cuBLAS's products, and a kernel each for norms and SwiGLU."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def normed(self, x: Tensor, norm: Tensor) -> Tensor:
        return rms_norm(x, norm, self.eps)

    def project(self, normed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(normed, weight, bias)

    def gated(self, normed: Tensor, gate_up: Tensor) -> Tensor:
        return gated(normed @ gate_up.T)

    def add(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor) -> Tensor:
        if bias is None:
            x.addmm_(y, weight.T)
        else:  # rounded to the model's type before the residual is added, as in the layer itself
            x += nn.functional.linear(y, weight, bias)
        return self.normed(x, norm)

    def states(self, x: Tensor, normed: Tensor, norm: Tensor) -> Tensor:
        return normed


class FusedProducts:
    """Kernels for few tokens, see `product_kernels.py`. A norm is rounded once; in the layer itself it is twice."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def normed(self, x: Tensor, norm: Tensor) -> Normed:
        return weigh(x, norm)

    def project(self, normed: Normed, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is None
        return scaled_product(normed, weight, self.eps, projection_tile(len(normed.weighted)))

    def gated(self, normed: Normed, gate_up: Tensor) -> Tensor:
        return scaled_product(normed, gate_up, self.eps, gated_tile(len(normed.weighted)), is_gated=True)

    def add(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor) -> Normed:
        assert bias is None
        return add_product(x, y, weight, norm, adding_tile(len(x), x.shape[1]))

    def states(self, x: Tensor, normed: Normed, norm: Tensor) -> Tensor:
        return rms_norm(x, norm, self.eps)  # rounded as everywhere else


def choose_products(x: Tensor, weights: list[Tensor], eps: float, *, biased: bool) -> Products:
    """The faster ones for x [N, D] and a layer's `weights` [O, K]: fused ones for few tokens in bfloat16 on Hopper."""
    fused = (
        len(x) <= most_tokens(x.shape[1])
        and overlaps(x)
        and not biased
        and all(size % DEEPEST == 0 for weight in weights for size in weight.shape)
    )
    return (FusedProducts if fused else LibraryProducts)(eps)


# The tiles that were fastest on an H100 with Qwen3-0.6B's shapes: `python -m bench.sample --only products` compares
# the fused products with the library's.
def projection_tile(tokens: int) -> Tile:
    if tokens > 64:
        return Tile(64, 128, 128, stages=4, bulk=True)
    return Tile(16 if tokens <= 16 else 32, 64, 256, stages=4)


def gated_tile(tokens: int) -> Tile:
    if tokens > 64:
        return Tile(128, 64, 64, stages=4, warps=8, bulk=True)
    if tokens > 32:
        return Tile(32, 16, 256, stages=3)
    return Tile(32, 8, 256, stages=4) if tokens > 16 else Tile(16, 32, 256, stages=4)


def adding_tile(tokens: int, size: int) -> Tile:
    """Of a sum of `size` columns. At most 128 programs share a row: every program of the next one reads all sums."""
    if tokens > 64:
        return Tile(64, 32, 128, stages=5, bulk=True)
    columns = max(8 if 16 < tokens <= 32 else 16, triton.next_power_of_2(size // 128))
    return Tile(16 if tokens <= 16 else 32, columns, 512, stages=4 if columns < 32 else 3, slices=4)
