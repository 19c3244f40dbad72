"""Parameter groups, learning rates, and what runs in place of an optimiser that cannot."""

import itertools
import logging
import math

import pytest
import torch
from runs import changed, curves, weights
from test_resume import elsewhere

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.training.loop import train
from qwen3llada.training.optimizer import build_optimizer, build_schedule, parameter_groups
from qwen3llada.training.params import OptimParams, PretrainParams
from qwen3llada.training.run import Run


def test_norms_and_embeddings_do_not_decay(tiny):
    model = Qwen3LLadaForMaskedLM.from_pretrained(tiny / "model")
    decayed, kept = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert all(names[id(p)].endswith("_proj.weight") for p in decayed["params"])
    assert all("norm" in names[id(p)] or "embed" in names[id(p)] for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_an_untied_head_does_not_decay_and_frozen_parameters_are_left_out(tiny):
    model = Qwen3LLadaForMaskedLM.from_pretrained(tiny / "model")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.model.layers[0].requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.1)
    assert any(p is model.lm_head.weight for p in kept["params"])
    frozen = {id(p) for p in model.model.layers[0].parameters()}
    assert not frozen & {id(p) for group in (decayed, kept) for p in group["params"]}


def rates(steps, **options):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = build_schedule(optimizer, OptimParams(**options), steps)
    seen = []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", lambda i: (20 - i) / 16),
        ("cosine", lambda i: (1 + math.cos(math.pi * (i - 4) / 16)) / 2),
        ("constant_with_warmup", lambda i: 1.0),
    ],
)
def test_schedules_follow_their_formulas(name, expected):
    seen = rates(20, scheduler=name, warmup_ratio=0.2)
    assert seen[:4] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert seen[4:] == pytest.approx([expected(i) for i in range(4, 20)])


def test_warmup_stable_decay_is_flat_in_the_middle_and_falls_at_the_end():
    seen = rates(20, scheduler="warmup_stable_decay", warmup_ratio=0.2, decay_ratio=0.3)
    assert seen[4:14] == pytest.approx([1.0] * 10)
    assert all(later < earlier for earlier, later in itertools.pairwise(seen[14:]))
    assert len(rates(3, scheduler="warmup_stable_decay", warmup_ratio=0.5, decay_ratio=0.5)) == 3  # both round up


@pytest.mark.parametrize("name", ["adamw8bit", "lion8bit"])
def test_8_bit_optimisers_fall_back_on_a_cpu_and_say_so_once(name, caplog):
    with caplog.at_level(logging.WARNING):
        optimizer, used = build_optimizer(torch.nn.Linear(4, 4), OptimParams(name=name))
    assert (type(optimizer), used) == (torch.optim.AdamW, "adamw")
    assert caplog.text.count(f"optim.name={name} cannot run here") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bf16": True, "fp16": True}, "exclude each other"),
        ({"param_dtype": "bfloat16"}, "needs bf16=true"),
        ({"loss_impl": "mse"}, "must be one of guidelines, dllm, soft_ce"),
        ({"adapter": {"method": "qlora"}}, "needs bf16=true or fp16=true"),
        ({"optim": {"betas": [0.9, 1.0]}}, "less than 1"),
        (
            {"optim": {"scheduler": "warmup_stable_decay", "warmup_ratio": 0.6, "decay_ratio": 0.6}},
            "must not exceed 1",
        ),
        ({"micro_batch": 3}, "Extra inputs"),
    ],
)
def test_contradictions_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        PretrainParams.model_validate(changes)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.3, 100.0])
def test_scaling_gradients_in_the_update_is_clipping_them_before(pretraining, tmp_path, monkeypatch, max_grad_norm):
    before = changed(pretraining, max_grad_norm=max_grad_norm, save_steps=6, do_eval_loss=False)
    train(before, seed=1)
    within = elsewhere(before, tmp_path / "within")
    monkeypatch.setattr(Run, "scales_in_update", True)
    train(within, seed=1)
    torch.testing.assert_close(weights(within), weights(before), rtol=1e-5, atol=1e-6)
    norms = [[p["train/grad_norm"] for p in curves(run, 6) if "train/grad_norm" in p] for run in (within, before)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
