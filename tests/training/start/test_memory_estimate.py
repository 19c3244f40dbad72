"""The memory estimate against measurements, and the advice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import changed, start_training
from tiny_settings import write_model

from bench.context import model_of_size
from bench.scale_models import SHAPES as QWEN3
from qwen3llada.params import load
from qwen3llada.training.start.layer_bytes import layer_bytes
from qwen3llada.training.start.memory_estimate import (
    GIB,
    LEAST,
    PLANS,
    USABLE,
    choose_plan,
    estimate_memory,
    largest_micro_batch,
    over_budget,
)

ROOT = Path(__file__).parents[3]


def qwen3_0_6b():
    return model_of_size(1024, 3072, 28, 16, tied=True)


# measured by bench/train.py on an H200, and by bench/parallel.py with accumulation on an H100
@pytest.mark.parametrize(
    ("rows", "length", "changes", "measured"),
    [
        (16, 1024, {}, 29.0),
        (8, 4096, {}, 49.2),
        (16, 1024, {"gradient_accumulation_steps": 2}, 31.2),
        (8, 4096, {"gradient_accumulation_steps": 2}, 51.0),
        (16, 1024, {"param_dtype": "bfloat16"}, 24.5),
        (8, 4096, {"param_dtype": "bfloat16"}, 44.7),
        (16, 1024, {"optim": {"name": "adamw8bit"}}, 25.8),
        (16, 1024, {"optim": {"name": "lion8bit"}}, 25.3),
        (16, 1024, {"gradient_checkpointing": True}, 10.2),
        (8, 4096, {"gradient_checkpointing": True}, 11.6),
    ],
)
def test_estimate_is_near_what_was_measured(pretraining, rows, length, changes, measured):
    changes = {"gradient_accumulation_steps": 1} | changes
    params = changed(pretraining, micro_batch_size=rows, max_length=length, bf16=True, **changes)
    model = qwen3_0_6b().to(getattr(torch, params.param_dtype))
    estimate = estimate_memory(params, model, device="cuda", compiled=True)
    assert estimate.total / GIB == pytest.approx(measured, rel=0.03)


# measured by bench/parallel.py on two GPUs
@pytest.mark.parametrize(
    ("rows", "length", "accumulation", "options", "measured"),
    [
        (16, 1024, 1, {"ddp": True}, 31.2),
        (8, 4096, 1, {"ddp": True}, 51.1),
        (16, 1024, 4, {"ddp": True}, 35.1),
        (16, 1024, 1, {"shards": 2, "plan": LEAST}, 24.3),
    ],
)
def test_estimate_of_each_of_two_processes_is_near_what_was_measured(
    pretraining, rows, length, accumulation, options, measured
):
    changes = {"micro_batch_size": rows, "max_length": length, "gradient_accumulation_steps": accumulation}
    params = changed(pretraining, bf16=True, **changes)
    estimate = estimate_memory(params, qwen3_0_6b(), device="cuda", compiled=True, **options)
    assert estimate.total / GIB == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize(
    ("size", "rows", "accumulation", "policy", "measured"),
    [  # by bench/scale.py on four H200s
        ("8b", 8, 1, "full", 44.1),
        ("8b", 8, 1, "block_causal", 46.85),
        ("4b", 4, 2, "block_causal", 37.44),
    ],
)
def test_estimate_under_fsdp2_with_gathered_weights_is_near_what_was_measured(
    pretraining, size, rows, accumulation, policy, measured
):
    changes = {"micro_batch_size": rows, "max_length": 1024, "gradient_accumulation_steps": accumulation}
    attention = {"policy": policy, "block_length": 32}
    params = changed(pretraining, bf16=True, gradient_checkpointing=True, attention=attention, **changes)
    options: dict = {"device": "cuda", "compiled": True, "shards": 4, "plan": PLANS[0]}
    estimate = estimate_memory(params, model_of_size(*QWEN3[size]), **options)
    assert estimate.total / GIB == pytest.approx(measured, rel=0.02)


def test_the_largest_micro_batch_is_the_last_that_fits(pretraining):
    params, model = changed(pretraining, bf16=True, max_length=1024), qwen3_0_6b()
    options = {"device": "cuda", "compiled": True}
    for usable in (14 * GIB, 75 * GIB):
        rows = largest_micro_batch(params, model, usable, **options)
        fitting, beyond = (changed(params, micro_batch_size=n) for n in (rows, rows + 1))
        assert estimate_memory(fitting, model, **options).total <= usable
        assert estimate_memory(beyond, model, **options).total > usable
    assert largest_micro_batch(params, model, 8 * GIB, **options) == 0


def test_an_estimate_that_does_not_fit_says_what_would(pretraining):
    params = changed(pretraining, bf16=True, max_length=1024, micro_batch_size=96, gradient_accumulation_steps=2)
    memory = estimate_memory(params, qwen3_0_6b(), device="cuda", compiled=True)
    assert over_budget(params, memory, 200 * GIB) == ""
    assert over_budget(params, replace(memory, largest=50), 75 * GIB) == (
        "; more than the 75 GiB that can be used, into which micro_batch_size=48 with gradient_accumulation_steps=4"
        " would fit"
    )
    assert over_budget(params, replace(memory, largest=0), 5 * GIB).endswith("into which no micro-batch would fit")


def test_weights_and_gradients_stay_gathered_where_they_fit(pretraining):
    params, model = changed(pretraining, bf16=True, gradient_checkpointing=True), model_of_size(*QWEN3["8b"])
    options = {"device": "cuda", "compiled": True, "shards": 8}
    whole, weights, least = (estimate_memory(params, model, plan=plan, **options) for plan in PLANS)
    assert (whole.total - weights.total) / GIB == pytest.approx(8.19e9 * 4 / GIB, rel=0.2)  # float32 gradients
    assert weights.gathered - least.gathered == pytest.approx(8.19e9 * 2, rel=0.2)  # all but the head and a few layers
    assert weights.total > least.total
    # At the end of the backward pass: head and three layers in 16 bits, gradients of head and embedding in 16 and 32.
    whole_there = least.total - least.weights - least.moments - least.gradients
    assert whole_there == pytest.approx(2 * (0.622e9 + 3 * 0.193e9) + 6 * 2 * 0.622e9, rel=0.12)  # and a layer's inputs
    chosen = [choose_plan(params, model, gib and gib * GIB, **options) for gib in (130, 60, 30, None)]
    assert chosen == [*PLANS, LEAST]
    barely = int(1.05 * estimate_memory(params, model, plan=PLANS[0], **options).total)
    assert choose_plan(params, model, barely, **options) == PLANS[1]


# hidden, intermediate, layers, query heads, tied: all have 8 key heads of 128
@pytest.mark.parametrize("size", QWEN3)
def test_the_sets_for_qwen3_need_what_they_and_the_documentation_say(size):
    path = ROOT / f"configs/qwen3-{size}.yaml"
    params = load(ROOT / "params.yaml", path).pretrain
    model = model_of_size(*QWEN3[size]).to(getattr(torch, params.param_dtype))
    gib = estimate_memory(params, model, device="cuda", compiled=True).total / GIB
    assert gib < 75  # of 79.6, with the allocator's slack and the libraries' own
    assert f"about {round(gib)} GiB by docs/scaling.md" in path.read_text()
    row = next(line for line in (ROOT / "docs/scaling.md").read_text().splitlines() if f"`qwen3-{size}`" in line)
    full = changed(params, attention={"policy": "full"})
    whole = estimate_memory(full, model, device="cuda", compiled=True).total / GIB
    assert f"| {round(gib)} GiB | {round(whole)} GiB |" in row
    changes = {"param_dtype": "float32", "gradient_accumulation_steps": params.gradient_accumulation_steps // 8}
    spread, model = changed(params, **changes), model.float()
    options: dict = {"device": "cuda", "compiled": True}
    if "`fsdp2`" in row:
        options |= {"shards": 8}
        options |= {"plan": choose_plan(spread, model, int(79.1 * GIB * USABLE), **options)}
    else:
        options |= {"ddp": True}
    each = estimate_memory(spread, model, **options).total / GIB
    assert row.endswith(f"accumulation {spread.gradient_accumulation_steps} | {round(each)} GiB |")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_bytes_of_an_uncompiled_layer_are_those_that_autograd_keeps(bf16, masked):
    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    shapes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 64}
    config = Qwen3LLadaConfig(**shapes, intermediate_size=256, num_hidden_layers=2, mask_token_id=0)
    model = Qwen3LLadaForMaskedLM(config).train()
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    def kept_bytes(layers):
        kept.clear()
        model.config.num_hidden_layers = layers
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        mask = torch.zeros(4, 1, 128, 128) if masked else None
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", enabled=bf16):
            model.model(input_ids=torch.ones(4, 128, dtype=torch.long), attention_mask=mask)
        return sum(storage.nbytes() for place, storage in kept.items() if place not in parameters)

    rounded = 2 * sum(p.numel() for p in model.model.layers[1].parameters() if p.ndim == 2) * bf16  # "weights"
    per_token = (kept_bytes(2) - kept_bytes(1) - rounded) / (4 * 128)
    assert layer_bytes(config, 2 if bf16 else 4, compiled=False, masked=masked) == pytest.approx(per_token, rel=0.05)


def test_the_estimate_on_a_cpu_covers_the_peak_of_the_process(pretraining, tmp_path):
    """What the process held before, its libraries above all, is part of both."""
    shapes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    write_model(tmp_path / "big", **shapes, head_dim=64, max_position_embeddings=256)
    changes = {"model": tmp_path / "big", "max_steps": 2, "micro_batch_size": 64, "do_eval_loss": False}
    changes |= {"noise": {"random_length_prob": 0.0}, "attention": {"policy": "block_causal", "block_length": 4}}
    run = start_training(changed(pretraining, **changes))
    run.join()
    measured = json.loads((pretraining.reports / "speed.json").read_text())
    own = 0.25  # GiB, by the formula: activations 0.2, and 0.05 for weights, gradients and moments
    excess = measured["peak_memory_gib"] - measured["estimated_memory_gib"]
    assert -own < excess < own / 4  # below: the process may have memory of earlier tests to use again


def test_spreading_and_checkpointing_save_what_they_should(pretraining):
    params, model = changed(pretraining, bf16=True), qwen3_0_6b()
    whole = estimate_memory(params, model, device="cuda", compiled=True)
    spread = estimate_memory(params, model, shards=4, device="cuda", compiled=True, plan=LEAST)
    assert (spread.moments * 4, spread.activations) == (whole.moments, whole.activations)
    again = estimate_memory(changed(params, gradient_checkpointing=True), model, device="cuda", compiled=True)
    assert again.activations < whole.activations / 10
