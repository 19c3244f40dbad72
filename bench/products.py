"""A layer's products with their norms, SwiGLU and residual sums: the fused kernels beside the library's.

The row `products` of `python -m bench.sample --only`. Attention's place is taken by a copy of the queries. The layers
have weights of their own, more than the cache holds, and all of them are one CUDA graph.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.attention_tiles import microseconds
from qwen3llada.sampling.cuda.products import FusedProducts, LibraryProducts, Products

MODELS = {  # hidden, intermediate, query heads, key/value heads, layers here
    "0.6B": (1024, 3072, 16, 8, 28),
    "1.7B": (2048, 6144, 16, 8, 14),
    "4B": (2560, 9728, 32, 8, 8),
    "8B": (4096, 12288, 32, 8, 4),
}
TOKENS = (4, 16, 32, 64, 96, 128, 192, 256, 320, 512)
HEAD, EPS = 128, 1e-6


def compare_products() -> Iterator[str]:
    """Microseconds of a layer."""
    for name, sizes in MODELS.items():
        yield f"  Qwen3-{name}: tokens, library us a layer, fused, times"
        layers, norm = _weights(*sizes)
        for tokens in TOKENS:
            kinds: list[Products] = [LibraryProducts(EPS), FusedProducts(EPS)]
            library, fused = (_microseconds(kind, layers, norm, tokens) for kind in kinds)
            yield f"    {tokens:4} {library:8.2f} {fused:8.2f} {library / fused:6.2f}"


def _weights(hidden: int, inner: int, heads: int, key_heads: int, count: int) -> tuple[list[list[Tensor]], Tensor]:
    """The layers' weights (queries, keys and values; output; gate and up; down), and a norm's."""
    shapes = ((heads + 2 * key_heads) * HEAD, hidden), (hidden, heads * HEAD), (2 * inner, hidden), (hidden, inner)
    given = {"dtype": torch.bfloat16, "device": "cuda"}
    layers = [[torch.randn(n, k, **given) * k**-0.5 for n, k in shapes] for _ in range(count)]
    return layers, torch.ones(hidden, **given)


def _microseconds(products: Products, layers: list[list[Tensor]], norm: Tensor, tokens: int) -> float:
    """Of a layer."""
    start = torch.randn(tokens, len(norm), dtype=norm.dtype, device=norm.device)

    def run() -> None:
        x = start.clone()
        normed = products.normed(x, norm)
        for qkv, out, gate_up, down in layers:
            mixed = products.project(normed, qkv, None)[:, : out.shape[1]].contiguous()
            normed = products.add(x, mixed, out, None, norm)
            normed = products.add(x, products.gated(normed, gate_up), down, None, norm)

    return microseconds(run) / len(layers)
