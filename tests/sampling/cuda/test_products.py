"""Products with norms, SwiGLU and residual sums inside, against plain torch: in Triton's interpreter, and on a GPU."""

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

EPS = 1e-5


def reference(x: Tensor, y: Tensor, weights: list[Tensor], norms: list[Tensor]) -> list[Tensor]:
    """Projection, gated product, residual sum and its norm, in float64."""
    projection, gate_up, out = (weight.double() for weight in weights)
    x, y, normed = x.double(), y.double(), lambda x, norm: nn.functional.rms_norm(x, (len(norm),), norm.double(), EPS)
    gate, up = (normed(x, norms[0]) @ gate_up.T).chunk(2, 1)
    total = x + y @ out.T
    return [normed(x, norms[0]) @ projection.T, nn.functional.silu(gate) * up, total, normed(total, norms[1])]


def compare(device, tokens, sizes, tiles, *, dtype=torch.float32, tolerance=1e-5):
    """sizes: hidden, outputs of the projection, intermediate. tiles: of the projection, the gated product, the sum."""
    from qwen3llada.sampling.cuda.product_kernels import Tile, add_product, scaled_product, weigh

    hidden, outputs, inner = sizes
    generator = torch.Generator().manual_seed(tokens)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    x, y = random(tokens, hidden), random(tokens, inner)
    weights = [random(n, k, scale=k**-0.5) for n, k in ((outputs, hidden), (2 * inner, hidden), (hidden, inner))]
    norms = [random(hidden, scale=0.3) + 1 for _ in range(2)]
    expected = reference(x, y, weights, norms)
    x, y, norms, weights = x.to(device), y.to(device), [n.to(device) for n in norms], [w.to(device) for w in weights]
    projection, gated, adding = (tile if isinstance(tile, Tile) else Tile(*tile) for tile in tiles)
    normed = weigh(x, norms[0])
    found = [
        scaled_product(normed, weights[0], EPS, projection),
        scaled_product(normed, weights[1], EPS, gated, is_gated=True),
    ]
    following = add_product(x, y, weights[2], norms[1], adding)
    scale = (following.squares.sum(1, keepdim=True) / hidden + EPS).rsqrt()
    for ours, theirs in zip([*found, x, following.weighted * scale], expected, strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=tolerance, atol=tolerance)
    # The parts of the sum's norm serve the next product, however many programs wrote them.
    again = scaled_product(following, weights[0], EPS, projection)
    theirs = nn.functional.linear(expected[-1], weights[0].cpu().double())
    torch.testing.assert_close(again.cpu().double(), theirs, rtol=2 * tolerance, atol=2 * tolerance)


def compare_whole_tiles(device):
    compare(device, 16, (32, 48, 64), [(16, 16, 16, 2), (16, 16, 32, 2), (16, 16, 32, 2, 4, 2)])


def compare_part_of_a_tile(device):
    """Fewer tokens than a tile has, a second tile, and a number of parts that is no power of two."""
    compare(device, 5, (48, 32, 64), [(16, 16, 16, 2), (16, 16, 16, 2), (16, 16, 32, 2, 4, 2)])
    compare(device, 20, (48, 32, 64), [(16, 16, 16, 2), (16, 32, 16, 2), (16, 16, 32, 2)])


def compare_bulk_tiles(device):
    compare(device, 20, (32, 32, 64), [(16, 16, 16, 2, 4, 1, True)] * 3)


def compare_both(device):
    """A layer by the fused products and by the library's."""
    from qwen3llada.sampling.cuda import products
    from qwen3llada.sampling.cuda.product_kernels import Tile

    generator = torch.Generator().manual_seed(0)
    shapes = (5, 32), (5, 64), (48, 32), (128, 32), (32, 64), (32,), (32,)
    given = [torch.randn(*shape, generator=generator).to(device) for shape in shapes]

    def layer(by):
        x, y, qkv, gate_up, down, first, second = (value.clone() for value in given)
        normed = by.normed(x, first)
        found = [by.project(normed, qkv, None), by.gated(normed, gate_up)]
        return [*found, x, by.states(x, by.add(x, y, down, None, second), second)]

    with pytest.MonkeyPatch.context() as patch:
        for name in ("projection_tile", "gated_tile", "adding_tile"):
            patch.setattr(products, name, lambda *sizes: Tile(16, 16, 16, stages=2))
        found, expected = layer(products.FusedProducts(EPS)), layer(products.LibraryProducts(EPS))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


CHECKS = [compare_whole_tiles, compare_part_of_a_tile, compare_bulk_tiles, compare_both]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("check", CHECKS)
def test_products_on_a_gpu(check):
    check("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tokens", [3, 16, 17, 32, 50, 64, 65, 200, 256])
def test_the_chosen_tiles_on_a_gpu(tokens):
    from qwen3llada.sampling.cuda.products import adding_tile, gated_tile, projection_tile

    tiles = [projection_tile(tokens), gated_tile(tokens), adding_tile(tokens, 1024)]
    compare("cuda", tokens, (1024, 4096, 3072), tiles, dtype=torch.bfloat16, tolerance=3e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tokens", [4, 32, 64, 256])
@torch.no_grad()
def test_a_layer_computes_what_the_library_does(tokens, monkeypatch):
    """States of three layers: as near to those in float32 as the library's are."""
    from bench.sample import make_model
    from qwen3llada.sampling.cuda import packed_model
    from qwen3llada.sampling.cuda.packed_model import PackedModel
    from qwen3llada.sampling.cuda.products import FusedProducts, LibraryProducts

    model = make_model("cuda", torch.bfloat16)
    model.model.layers = model.model.layers[:3]
    ranges = torch.zeros(7, 1, dtype=torch.int32, device="cuda")
    ranges[1] = tokens
    ids, positions = torch.arange(tokens, device="cuda")[None] * 7, torch.arange(tokens, device="cuda").int()
    states, used = {}, []

    def through(products):
        def choose(x, weights, eps, *, biased):
            used.append(products)
            return products(eps)

        monkeypatch.setattr(packed_model, "choose_products", choose)
        return PackedModel(model)(ids, positions, ranges).double()

    for products in (FusedProducts, LibraryProducts):
        states[products] = through(products)
    model.float()
    exact = through(LibraryProducts)
    assert used == [FusedProducts, LibraryProducts, LibraryProducts]
    far, near = ((states[products] - exact).norm() / exact.norm() for products in (FusedProducts, LibraryProducts))
    assert far < 1.2 * near + 1e-4
    assert far < 0.03


def test_products_are_the_librarys_where_the_fused_ones_were_not_measured():
    from qwen3llada.sampling.cuda.products import LibraryProducts, choose_products

    weights = [torch.zeros(512, 512, dtype=torch.bfloat16)]
    assert isinstance(choose_products(torch.zeros(4, 512), weights, EPS, biased=False), LibraryProducts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_products_are_fused_for_few_tokens_in_bfloat16():
    from qwen3llada.sampling.cuda.kernel_overlap import overlaps
    from qwen3llada.sampling.cuda.products import FusedProducts, LibraryProducts, choose_products

    def chosen(tokens=4, size=512, dtype=torch.bfloat16, biased=False):
        x, weights = (torch.zeros(n, size, dtype=dtype, device="cuda") for n in (tokens, 512))
        return type(choose_products(x, [weights], EPS, biased=biased))

    if not overlaps(torch.zeros(1, dtype=torch.bfloat16, device="cuda")):
        pytest.skip("needs a Hopper GPU")
    for tokens, size in ((256, 1024), (32, 2048), (16, 4096)):
        assert chosen(tokens, size) is FusedProducts
        assert chosen(tokens + 1, size) is LibraryProducts
    for other in ({"size": 480}, {"dtype": torch.float32}, {"biased": True}):
        assert chosen(**other) is LibraryProducts
