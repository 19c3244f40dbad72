"""Cross-entropies by tiles of the vocabulary against PyTorch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from qwen3llada.diffusion import tiled_cross_entropy as module
from qwen3llada.diffusion.fused_cross_entropy import fused_cross_entropy
from qwen3llada.diffusion.tiled_cross_entropy import tiled_cross_entropy

N, D, V = 23, 8, 101


def inputs(dtype=torch.float64, spread=1.0):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(N, D, generator=generator), torch.randn(V, D, generator=generator) * spread
    return hidden.to(dtype), weight.to(dtype), torch.randint(V, (N,), generator=generator)


def expected(hidden, weight, targets, smoothing):
    logits = F.linear(hidden, weight).double()
    return torch.stack([F.cross_entropy(logits, targets, reduction="none", label_smoothing=s) for s in (0, smoothing)])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("columns", [1, 10, V, 1000])
@pytest.mark.parametrize("rows", [1, 10, 1000])
def test_equals_torchs_cross_entropy_however_it_is_cut(monkeypatch, rows, columns, smoothing):
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "COLUMNS", columns)
    given = inputs()
    torch.testing.assert_close(tiled_cross_entropy(*given, smoothing), expected(*given, smoothing))


@pytest.mark.parametrize("spread", [1e-6, 1e3, 1e30])
def test_extreme_logits_in_rising_and_falling_order(monkeypatch, spread):
    monkeypatch.setattr(module, "COLUMNS", 7)
    hidden, weight, targets = inputs(torch.float32, spread)
    order = F.linear(hidden[:1], weight).argsort().squeeze(0)
    for ordered in (weight[order], weight[order.flip(0)]):
        found = tiled_cross_entropy(hidden, ordered, targets, 0.0).double()
        truth = expected(hidden, ordered, targets, 0.0)
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5 * spread)


def test_the_loss_is_that_with_gradients_and_no_more_than_a_tile_of_logits_exists(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 10)
    monkeypatch.setattr(module, "COLUMNS", 20)
    hidden, weight, targets = inputs(torch.float32)
    weights = torch.rand(N)
    loss, per_token = fused_cross_entropy(
        hidden.requires_grad_(), weight, targets, weights, smoothing=0.1, return_per_token=True
    )
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    with torch.no_grad(), Watch():
        found, each = fused_cross_entropy(hidden, weight, targets, weights, smoothing=0.1, return_per_token=True)
    torch.testing.assert_close(found, loss.detach())
    torch.testing.assert_close(each, per_token)
    assert max(made) <= max(weight.numel(), 10 * 20)
    assert N * V > weight.numel() > 0


def test_no_token_gives_nothing():
    hidden, weight, targets = inputs()
    assert tiled_cross_entropy(hidden[:0], weight, targets[:0], 0.0).shape == (2, 0)
