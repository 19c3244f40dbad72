"""Products in 8 bits against those in float32."""

import pytest
import torch
from torch import nn

from bench.fp8 import in_8_bits, linear
from tests.objective.objective_steps import make_model


def apart(one, other):
    return float(((one.float() - other.float()).norm() / other.norm()).detach())


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_and_its_gradients_are_near_those_in_float32(bias):
    """e4m3 has 3 bits of mantissa and rounds by 2^-4 at most, e5m2 has 2: half of that is usual."""
    torch.manual_seed(0)
    exact, x = nn.Linear(64, 48, bias=bias), torch.randn(2, 16, 64, requires_grad=True)
    above = torch.randn(2, 16, 48)
    exact(x).backward(above)
    gradients = x.grad, exact.weight.grad
    x.grad = exact.weight.grad = None
    result = linear(exact, x)
    assert 0.005 < apart(result, exact(x)) < 0.05
    result.backward(above.to(result.dtype))
    assert 0.005 < apart(x.grad, gradients[0]) < 0.08
    assert 0.005 < apart(exact.weight.grad, gradients[1]) < 0.08


def test_layers_of_runs_that_start_within_the_context_compute_in_8_bits(monkeypatch):
    from qwen3llada.training.start import start

    model, compiled = make_model(), []
    monkeypatch.setattr(start, "compile_layers", lambda model, *rest: compiled.append(rest) or True)
    with in_8_bits():
        assert start.compile_layers(model, "params", "device")
    assert compiled == [("params", "device")]
    converted = {name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m.forward.__func__ is linear}
    assert converted == {name for name, m in model.named_modules() if isinstance(m, nn.Linear) and "layers" in name}
    other = make_model()
    start.compile_layers(other)
    assert all(m.forward.__func__ is not linear for m in other.modules() if isinstance(m, nn.Linear))
