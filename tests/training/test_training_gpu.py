"""Checks that need a GPU: kernels and compilation, precisions, 8-bit optimisers, 4-bit base weights."""

import importlib.util

import pytest
import torch
from runs import assert_same_run, changed, curves, elsewhere, leave_after, weights
from tiny_settings import write_model

from qwen3llada.training.loop import train

bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
STEPS = 12


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """Matrices large enough for 8-bit moments (4,096 elements), and heads that all attention kernels support."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    write_model(folder, hidden_size=128, intermediate_size=256, head_dim=64)
    return folder


@pytest.fixture
def on_gpu(pretraining, wide_model):
    return changed(
        pretraining, model=wide_model, max_steps=STEPS, save_steps=STEPS, logging_steps=1, bf16=True, compile="never"
    )


def losses(params):
    return torch.tensor([point["train/loss"] for point in curves(params, STEPS) if "train/loss" in point])


def test_compiled_layers_and_kernels_give_the_losses_of_qwen3s_own(on_gpu, tmp_path):
    plain = changed(on_gpu, bf16=False)
    train(plain, seed=1)
    compiled = elsewhere(plain, tmp_path / "compiled", compile="auto")
    assert train(compiled, seed=1)["compiled"]
    torch.testing.assert_close(losses(compiled), losses(plain), rtol=1e-3, atol=1e-3)
    left = elsewhere(compiled, tmp_path / "left")
    leave_after(left, 5)
    train(left, seed=1)
    torch.testing.assert_close(losses(left), losses(compiled), rtol=1e-3, atol=1e-3)
    half = elsewhere(compiled, tmp_path / "bf16", bf16=True)
    train(half, seed=1)
    torch.testing.assert_close(losses(half), losses(plain), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"param_dtype": "bfloat16"},
        {"bf16": False, "fp16": True},
        {"gradient_checkpointing": True},
        {"attention": {"policy": "block", "block_length": 4}},
        {"attention": {"policy": "block_causal", "block_length": 4}},
        pytest.param({"optim": {"name": "adamw8bit", "lr": 0.01}}, marks=bitsandbytes),
        pytest.param({"optim": {"name": "lion8bit", "lr": 0.001}}, marks=bitsandbytes),
    ],
    ids=["default", "bf16 weights", "fp16", "checkpointing", "block", "block_causal", "adamw8bit", "lion8bit"],
)
def test_runs_learn_and_resume_bit_for_bit(on_gpu, tmp_path, changes):
    whole = changed(on_gpu, **changes)
    summary = train(whole, seed=1)
    assert summary["optimizer"] == whole.optim.name
    curve = losses(whole)
    assert curve[-3:].mean() < 0.9 * curve[:3].mean()
    broken = elsewhere(whole, tmp_path / "broken")
    leave_after(broken, 5)
    train(broken, seed=1)
    assert_same_run(whole, broken, STEPS)


@bitsandbytes
def test_qlora_trains_adapters_over_4_bit_weights_and_merges_them(on_gpu):
    pytest.importorskip("peft")
    adapter = {"method": "qlora", "rank": 4, "target_modules": ["q_proj", "down_proj"]}
    params = changed(on_gpu, adapter=adapter)
    train(params, seed=1)
    curve = losses(params)
    assert curve[-3:].mean() < curve[:3].mean()
    merged = weights(params)
    assert all(tensor.dtype == torch.float32 for tensor in merged.values())
