"""The objective against the plain losses on full logits, and its independence of how a step is cut up."""

import pytest
import torch
from torch import nn

from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.objective.objective import MaskedDiffusionObjective
from tests.objective.objective_steps import (
    CAP,
    MASK,
    SAMPLES,
    SMOOTHING,
    TASKS,
    VOCAB,
    WRAPPERS,
    batches,
    gradients,
    make_model,
    step,
    weights,
    work,
)
from tests.training.runs import run_together


def distance(found, expected):
    """Relative distance of two sets of gradients, with all parameters as one vector."""
    assert found.keys() == expected.keys()
    difference = sum((found[name] - expected[name]).double().square().sum() for name in expected)
    return (difference / sum(value.double().square().sum() for value in expected.values())).sqrt().item()


def plain_step(model, loss, task):
    """Gradients of the plain loss from full logits, all 16 samples in one batch."""
    (batch,) = batches(task, SAMPLES, 1)
    logits = model(input_ids=batch.noised.tokens, attention_mask=batch.valid.long()).logits
    LOSSES[loss](
        logits,
        batch.tokens,
        batch.noised,
        mask_token_id=MASK,
        valid=batch.valid,
        prompt_lengths=batch.prompt_lengths,
        smoothing=SMOOTHING,
        reweight_cap=CAP,
    ).backward()
    return {f"model.{name}": value for name, value in gradients(model).items()}


def objective_step(loss, task, *cut, **model):
    objective = MaskedDiffusionObjective(make_model(**model), chunk_size=7)
    step(objective, loss, batches(task, *cut))
    return gradients(objective)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Results of two ranks, by wrapper, task and loss."""
    folder = tmp_path_factory.mktemp("two_processes")
    run_together(2, work, str(folder))
    return torch.load(folder / "gradients.pt")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_plain_loss(loss, task, tied):
    assert distance(objective_step(loss, task, SAMPLES, 1, tied=tied), plain_step(make_model(tied), loss, task)) <= 1e-6


@pytest.mark.parametrize("cut", [(4, 4), (1, 16)], ids=["4x4", "16x1"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_do_not_change_the_step(loss, task, cut):
    assert distance(objective_step(loss, task, *cut), objective_step(loss, task, SAMPLES, 1)) <= 1e-6


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_processes_do_not_change_the_step(two_processes, loss, task, wrapper):
    assert distance(two_processes[wrapper, task, loss], objective_step(loss, task, SAMPLES, 1)) <= 1e-6


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_one_gradient_of_tied_embeddings_over_processes(two_processes, wrapper):
    assert distance(two_processes["one gradient", wrapper], objective_step("soft_ce", "sft", SAMPLES, 1)) <= 1e-6


def test_a_process_without_corrupted_tokens_takes_part(two_processes):
    objective = MaskedDiffusionObjective(make_model(tied=False))
    tokens = torch.arange(8).view(1, 8)
    objective(tokens, tokens, torch.ones(1, 8)).backward()
    expected = {name: value / 2 for name, value in gradients(objective).items()}  # DDP's mean with zero gradients
    assert distance(two_processes["empty"], expected) <= 1e-6


def test_a_sharded_projection_is_refused(two_processes):
    assert "must be whole while the objective runs" in two_processes["sharded head"]


@pytest.fixture
def batch():
    (found,) = batches("sft", SAMPLES, 1)
    return found


def call(objective, batch, **keywords):
    given = {"attention_mask": batch.valid.long(), "smoothing": SMOOTHING, **keywords}
    return objective(batch.noised.tokens, batch.tokens, weights("soft_ce", batch), **given)


def loss_and_gradients(objective, batch, **keywords):
    objective.zero_grad()
    total = call(objective, batch, **keywords)
    total.backward()
    return total.detach(), gradients(objective)


def test_given_positions_are_those_found(batch):
    objective = MaskedDiffusionObjective(make_model())
    positions = weights("soft_ce", batch).flatten().nonzero().squeeze(1)
    total, expected = loss_and_gradients(objective, batch)
    given, found = loss_and_gradients(objective, batch, positions=positions)
    assert torch.equal(given, total)
    assert distance(found, expected) == 0


def test_only_corrupted_positions_are_projected(batch):
    """The projection gets one row per corrupted position, and the head's own forward is never called."""
    objective = MaskedDiffusionObjective(make_model(tied=False))
    objective.model.lm_head.register_forward_hook(lambda *_: pytest.fail("full logits"))
    _, per_token = call(objective, batch, return_per_token=True)
    assert per_token.shape == (int((weights("soft_ce", batch) != 0).sum()),)


def test_losses_per_token_are_plain_detached_and_in_order(batch):
    objective = MaskedDiffusionObjective(make_model())
    total, per_token = call(objective, batch, return_per_token=True)
    logits = objective.model(input_ids=batch.noised.tokens, attention_mask=batch.valid.long()).logits
    chosen = weights("soft_ce", batch) != 0
    expected = nn.functional.cross_entropy(logits[chosen], batch.tokens[chosen], reduction="none")
    torch.testing.assert_close(per_token, expected.detach(), rtol=1e-5, atol=1e-5)
    assert total.requires_grad
    assert not per_token.requires_grad


def test_nothing_corrupted_gives_zero_gradients_everywhere(batch):
    objective = MaskedDiffusionObjective(make_model(tied=False))
    total = objective(batch.noised.tokens, batch.tokens, torch.zeros(batch.tokens.shape))
    total.backward()
    assert total.item() == 0
    assert all(value.abs().max() == 0 for value in gradients(objective).values())


def test_tokens_after_the_text_are_seen_but_not_predicted(batch):
    """[corrupted, clean] with a mask that hides the clean copy equals the corrupted text alone."""
    objective = MaskedDiffusionObjective(make_model())
    length = batch.tokens.shape[1]
    both = torch.cat([batch.noised.tokens, batch.tokens], 1)
    side = torch.arange(2 * length) // length
    visible = (side[:, None] >= side) & torch.cat([batch.valid, batch.valid], 1)[:, None, None, :]
    position_ids = torch.arange(length).repeat(len(both), 2)
    alone = call(objective, batch, position_ids=position_ids[:, :length])
    given = (both, batch.tokens, weights("soft_ce", batch))
    total = objective(*given, attention_mask=visible, position_ids=position_ids, smoothing=SMOOTHING)
    assert total.item() == pytest.approx(alone.item(), rel=1e-6)
    blind = objective(*given, position_ids=position_ids, smoothing=SMOOTHING)
    assert blind.item() != pytest.approx(alone.item(), rel=1e-3)


def test_checkpointed_and_compiled_bodies_give_the_same(batch):
    objective = MaskedDiffusionObjective(make_model())
    objective.train()
    total, expected = loss_and_gradients(objective, batch)
    objective.model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed, found = loss_and_gradients(objective, batch)
    assert torch.equal(checkpointed, total)
    assert distance(found, expected) <= 1e-6
    objective.model.gradient_checkpointing_disable()
    for layer in objective.model.model.layers:
        layer.forward = torch.compile(layer.forward, backend="aot_eager")
    compiled, found = loss_and_gradients(objective, batch)
    assert compiled.item() == pytest.approx(total.item(), rel=1e-6)
    assert distance(found, expected) <= 1e-6


def test_a_frozen_projection_gets_no_gradient_and_lets_the_rest_learn(batch):
    objective = MaskedDiffusionObjective(make_model(tied=False))
    _, expected = loss_and_gradients(objective, batch)
    objective.model.lm_head.requires_grad_(False)
    objective.zero_grad()
    call(objective, batch).backward()
    assert objective.model.lm_head.weight.grad is None
    trained = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    assert distance(trained, {name: expected[name] for name in expected if "lm_head" not in name}) <= 1e-6


def test_autocast_computes_in_its_dtype_and_keeps_float32_gradients(batch):
    objective = MaskedDiffusionObjective(make_model())
    _, expected = loss_and_gradients(objective, batch)
    objective.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = call(objective, batch)
    total.backward()
    found = gradients(objective)
    assert total.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in found.values())
    assert 1e-4 < distance(found, expected) < 5e-2


def test_what_layers_add_up_is_as_wide_as_what_they_compute_with(batch):
    objective = MaskedDiffusionObjective(make_model())
    seen = set()
    for layer in objective.model.model.layers:
        layer.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    call(objective, batch)
    assert seen == {torch.float32}
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        call(objective, batch)
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("head", [nn.Linear(16, VOCAB, bias=True), nn.Sequential(nn.Linear(16, VOCAB))])
def test_a_head_that_is_more_than_a_matrix_is_refused(head):
    model = make_model(tied=False)
    model.lm_head = head
    with pytest.raises(ValueError, match="must be a linear layer without bias"):
        MaskedDiffusionObjective(model)
