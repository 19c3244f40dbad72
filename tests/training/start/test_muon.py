"""Muon against its formulas in float64, beside torch's AdamW, and resumed."""

import pytest
import torch
from runs import changed, elsewhere, leave_after, weights
from runs import optimizer as stored_optimizer

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.training.loop import train
from qwen3llada.training.params import OptimParams
from qwen3llada.training.start.groups_and_schedule import build_optimizer
from qwen3llada.training.start.memory_estimate import estimate_memory
from qwen3llada.training.start.muon import MuonAndAdamW

LR, DECAY, MOMENTUM = 0.02, 0.1, 0.95


def orthogonal(matrix):
    """U·V' of the singular value decomposition, which Newton and Schulz's iteration approaches."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4)])
def test_a_matrix_moves_along_its_orthogonalised_momentum_as_far_as_under_adamw(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(5, *shape)
    weight = torch.nn.Parameter(start.clone())
    optimizer = MuonAndAdamW([{"params": [weight], "weight_decay": DECAY, "muon": True}], LR, (0.9, 0.95), 1e-8)
    average = torch.zeros(shape, dtype=torch.float64)
    for gradient in gradients:
        before = weight.detach().double().clone()
        weight.grad = gradient.clone()
        optimizer.step()
        average = MOMENTUM * average + (1 - MOMENTUM) * gradient.double()
        ahead = MOMENTUM * average + (1 - MOMENTUM) * gradient.double()  # Nesterov
        moved = (before * (1 - LR * DECAY) - weight.detach().double()) / LR
        expected = 0.2 * max(shape) ** 0.5 * orthogonal(ahead)
        cosine = (moved * expected).sum() / moved.norm() / expected.norm()
        assert cosine > 0.95  # five iterations in bfloat16 leave singular values between 0.7 and 1.2
        assert moved.norm() / expected.norm() == pytest.approx(1, abs=0.25)
    update = moved.square().mean().sqrt()
    assert update == pytest.approx(0.2, rel=0.3)  # AdamW's, by Liu et al.


def test_all_else_is_adamws_update(tiny):
    with_muon, with_adamw = (Qwen3LLadaForMaskedLM.from_pretrained(tiny / "model") for _ in range(2))
    optimizers = [
        build_optimizer(model, OptimParams(name=name, lr=LR, weight_decay=weight_decay))
        for model, name, weight_decay in ((with_muon, "muon", 0.0), (with_adamw, "adamw", 0.0))
    ]
    for step in range(3):
        for model, optimizer in zip((with_muon, with_adamw), optimizers, strict=True):
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * step + number)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for (name, one), other in zip(with_muon.named_parameters(), with_adamw.parameters(), strict=True):
        matrix = name.endswith("_proj.weight")
        assert torch.equal(one, other) != matrix, name
        assert set(optimizers[0].state[one]) == ({"momentum_buffer"} if matrix else {"step", "exp_avg", "exp_avg_sq"})


def test_the_rate_of_the_schedule_reaches_both():
    matrix, vector = torch.nn.Parameter(torch.eye(3)), torch.nn.Parameter(torch.ones(3))
    groups = [{"params": [matrix], "weight_decay": 0.0, "muon": True}, {"params": [vector], "weight_decay": 0.0}]
    optimizer = MuonAndAdamW(groups, LR, (0.9, 0.95), 1e-8)
    matrix.grad, vector.grad = torch.eye(3), torch.ones(3)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert torch.equal(matrix, torch.eye(3))
    assert torch.equal(vector, torch.ones(3))


def test_an_interrupted_run_leaves_the_same_bytes(pretraining, tmp_path):
    whole = changed(pretraining, optim={"name": "muon"}, do_eval_loss=False, save_steps=3)
    assert train(whole, seed=1)["optimizer"] == "muon"
    halved = elsewhere(whole, tmp_path / "halved")
    leave_after(halved, 3)
    train(halved, seed=1)
    torch.testing.assert_close(weights(halved), weights(whole), rtol=0, atol=0)
    moments = [stored_optimizer(run, 6)["optimizer"]["moments"] for run in (halved, whole)]
    torch.testing.assert_close(*moments, rtol=0, atol=0)


def test_the_memory_estimate_counts_one_moment_of_a_matrix(pretraining):
    params = changed(pretraining, optim={"name": "muon"})
    model = Qwen3LLadaForMaskedLM.from_pretrained(params.model)
    optimizer = build_optimizer(model, params.optim)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = sum(x.numel() * x.element_size() for state in optimizer.state.values() for x in state.values() if x.dim())
    assert estimate_memory(params, model, shards=1, device="cpu", compiled=False).moments == kept
