"""Forced masks: the loss decides whether a sequence without a mask gets one. Evaluation never forces one."""

from dataclasses import replace

import pytest
from runs import changed

from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.training.loop import evaluate, training_steps
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest

RARELY = {"schedule": "power", "power": 1e-9, "eps": 1e-6}  # p = 1e-6 at every level below 1


@pytest.fixture(params=["pretraining", "fine_tuning"])
def params(request):
    """Three samples in four have spans, whose length round(p*n) is 0."""
    noise = {"random_length_prob": 0.0, "mask_contiguous_region_prob": 0.75, **RARELY}
    return changed(request.getfixturevalue(request.param), noise=noise, max_steps=2)


def corrupted(source):
    """Corrupted positions of each sample of an epoch."""
    return [
        count
        for step in source.steps(0)
        for batch in step.micro_batches
        for count in batch.noised.masked.sum(1).tolist()
    ]


@pytest.mark.parametrize(("loss", "forced"), [("guidelines", 0), ("soft_ce", 0), ("dllm", 1)])
def test_training_forces_masks_under_dllm_alone(params, loss, forced):
    run = start(changed(params, loss_impl=loss), seed=1, template="plain")
    assert corrupted(run.data) == [forced] * 22
    assert corrupted(run.held_out) == [0] * 6


@pytest.mark.parametrize("inverse", [False, True])
def test_a_new_loss_says_it_itself(params, monkeypatch, inverse):
    monkeypatch.setitem(LOSSES, "mine", replace(LOSSES["dllm"], weighs_by_inverse_p=inverse))
    run = start(changed(params, loss_impl="mine"), seed=1, template="plain")
    assert corrupted(run.data) == [not inverse] * 22
    assert corrupted(run.held_out) == [0] * 6


def test_steps_and_evaluation_without_any_corrupted_position(params):
    """The loss is 0, every parameter has a zero gradient, and the weights stay finite."""
    run = start(changed(params, optim={"weight_decay": 0.0}), seed=1, template="plain")
    before = [parameter.detach().clone() for parameter in run.parameters()]
    gradients = []
    run.inner_optimizer.register_step_pre_hook(lambda *_: gradients.extend(p.grad for p in run.parameters()))
    values = [result.read() for result in training_steps(run, StopRequest())]
    assert [(v.loss, v.grad_norm, sum(v.corrupted)) for v in values] == [(0, 0, 0)] * 2
    assert len(gradients) == 2 * len(before)
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert all(parameter.equal(other) for parameter, other in zip(run.parameters(), before, strict=True))
    assert evaluate(run) == (0, {})
