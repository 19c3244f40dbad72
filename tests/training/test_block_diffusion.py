"""Whole runs of block diffusion: every policy, views, adapters, processes, resuming, and settings that change."""

import json

import pytest
import torch
from runs import assert_same_run, changed, curves, elsewhere, leave_after, train_together, weights

from qwen3llada.errors import InputError
from qwen3llada.evaluation.eval_loss import evaluate_model
from qwen3llada.evaluation.params import EvalLossParams
from qwen3llada.training.checkpoints.resuming import find_checkpoint
from qwen3llada.training.loop import train
from qwen3llada.training.start.start import start

STEPS = 6
BLOCKS = {"policy": "block_causal", "block_length": 4}
RUNS = {
    "block_causal": {"attention": BLOCKS},
    "window": {"attention": {"policy": "window", "block_length": 2, "window_blocks": 2}},
    "layered": {"attention": {"policy": ("block_causal", "window"), "block_length": 4}},
    "two views": {"attention": BLOCKS, "noise": {"views": 2}},
    "hybrid": {"attention": BLOCKS, "noise": {"noise_type": "hybrid", "t_range": (0.2, 0.9)}},
    "checkpointing": {"attention": BLOCKS, "gradient_checkpointing": True},
}


def config_of(params):
    return json.loads((params.dst / "config.json").read_text())


CASES = [*(("pretraining", name) for name in RUNS), ("fine_tuning", "two views")]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_runs_resume_bit_for_bit(request, tmp_path, kind, name):
    params = changed(request.getfixturevalue(kind), max_steps=STEPS, save_steps=STEPS, **RUNS[name])
    train(params, seed=1)
    broken = elsewhere(params, tmp_path / "broken")
    leave_after(broken, 4)
    train(broken, seed=1)
    assert_same_run(params, broken, STEPS)
    config, policy = config_of(params), params.attention.policy
    assert config["attention_policy"] == (policy if isinstance(policy, str) else list(policy))
    assert (config["block_length"], config["window_blocks"]) == (
        params.attention.block_length,
        params.attention.window_blocks,
    )
    held_out = evaluate_model(params.dst, params.data, params, EvalLossParams(rounds=1), seed=1)
    assert held_out["loss"] > 0


@pytest.mark.parametrize("kind", ["fine_tuning"])
def test_a_run_learns(request, kind):
    params = changed(request.getfixturevalue(kind), max_steps=60, save_steps=60, eval_every_steps=10, attention=BLOCKS)
    train(params, seed=1)
    losses = [point["eval/loss"] for point in curves(params, 60) if "eval/loss" in point]
    assert losses[-1] < 0.9 * losses[0]


def test_adapters(fine_tuning):
    pytest.importorskip("peft")
    adapter = {"method": "lora", "rank": 2, "target_modules": ["q_proj"]}
    params = changed(fine_tuning, attention=BLOCKS, adapter=adapter)
    train(params, seed=1)
    assert config_of(params)["attention_policy"] == "block_causal"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fine_tuning"])
def test_two_processes_compute_what_one_does(request, tmp_path, kind):
    knobs = {"attention": BLOCKS, "noise": {"views": 2, "random_length_prob": 0.2}, "logging_steps": 1, "save_steps": 4}
    alone = changed(request.getfixturevalue(kind), max_steps=4, micro_batch_size=4, **knobs)
    train(alone, seed=1)
    expected = [point["train/loss"] for point in curves(alone, 4) if "train/loss" in point]
    for name, sharded in (("ddp", False), ("fsdp2", True)):
        together = elsewhere(alone, tmp_path / name, micro_batch_size=2)
        train_together(together, 2, sharded=sharded)
        found = [point["train/loss"] for point in curves(together, 4) if "train/loss" in point]
        assert found == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(weights(together), weights(alone), rtol=1e-3, atol=1e-4)


def test_the_block_length_and_the_noise_change_in_the_course_of_a_run(pretraining):
    schedule = [{"until": 0.5, "block_length": 2}, {"until": 1.0, "block_length": 8}]
    stages = [{"until": 0.5, "noise_type": "random_replace"}, {"until": 1.0, "reweight_cap": 2.0, "level": "sequence"}]
    attention = {"policy": "block_causal", "block_schedule": schedule}
    params = changed(pretraining, max_steps=8, attention=attention, noise={"stages": stages})
    run = start(params, seed=1, template="plain")
    steps = [step for epoch in (0, 1) for step in run.data.steps(epoch)][:8]
    assert [step.facts.block_length for step in steps] == [2] * 4 + [8] * 4
    assert [step.facts.reweight_cap for step in steps] == [None] * 4 + [2.0] * 4
    assert [step.micro_batches[0].t.dim() for step in steps] == [2] * 4 + [1] * 4
    mask = run.tokenizer.mask_token_id
    shown = [bool((batch.noised.tokens == mask).any()) for step in steps for batch in step.micro_batches]
    assert shown[:8] == [False] * 8
    assert sum(shown[8:]) > 4
    held_out = next(run.held_out.steps(0))
    assert (held_out.facts.block_length, held_out.facts.reweight_cap) == (8, 2.0)
    train(params, seed=1)
    assert config_of(params)["block_length"] == 8
    assert config_of(params)["noise_type"] == "mask"


def test_blocks_of_a_schedule_fit_the_models_positions(pretraining):
    """The model of such a run could not be sampled from."""
    schedule = [{"until": 0.5, "block_length": 2}, {"until": 1.0, "block_length": 65}]
    params = changed(pretraining, attention={"policy": "block_causal", "block_schedule": schedule})
    with pytest.raises(InputError, match=r"block_schedule\[1\]\.block_length=65 must not exceed .*=64"):
        start(params, seed=1, template="plain")


def test_a_run_with_such_a_schedule_cannot_get_more_steps(pretraining):
    schedule = [{"until": 0.5, "block_length": 2}, {"until": 1.0, "block_length": 4}]
    attention = {"policy": "block_causal", "block_schedule": schedule}
    optim = {"lr": 0.01, "scheduler": "constant_with_warmup", "warmup_ratio": 0.0}
    params = changed(pretraining, max_steps=4, save_steps=2, attention=attention, optim=optim)
    train(params, seed=1)
    longer = start_fingerprint(changed(params, max_steps=8, resume_from=""))
    with pytest.raises(InputError, match=r"total_steps is 4 there and 8 here, and attention\.block_schedule changes"):
        find_checkpoint("latest", params.output_dir, longer)


def start_fingerprint(params):
    return start(params, seed=1, template="plain").fingerprint


def test_a_plan_must_fit_the_models_layers(pretraining):
    attention = {"policy": ("block_causal", "window", "window")}
    with pytest.raises(InputError, match="one policy for each of the model's 2 layers"):
        train(changed(pretraining, attention=attention), seed=1)
    assert not pretraining.dst.exists()
