"""One gradient of tied embeddings against the two that autograd makes and adds up."""

from unittest.mock import patch

import pytest
import torch
from torch import nn

from qwen3llada.objective.objective import MaskedDiffusionObjective
from qwen3llada.objective.tied_gradient import TiedGradient, is_worthwhile
from tests.objective.objective_steps import SAMPLES, TASKS, batches, make_model, one_gradient_everywhere, weights

EMBEDDING = "model.embed_tokens.weight"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def differentiate(model, batch, *, micro_batches=1, backward_passes=1, padding=None, **wanted):
    """Gradients of all parameters."""
    objective = MaskedDiffusionObjective(model, chunk_size=7)
    model.get_input_embeddings().padding_idx = padding
    given = [x.to(model.device) for x in (batch.noised.tokens, batch.tokens, weights("soft_ce", batch))]
    for _ in range(micro_batches):
        result = objective(*given, attention_mask=batch.valid.long().to(model.device), **wanted)
        total = result[0].sum() if wanted else result
        for number in range(backward_passes):
            total.backward(retain_graph=number + 1 < backward_passes)
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "given",
    [{}, {"micro_batches": 3}, {"backward_passes": 2}, {"return_log_probs": True}, {"padding": 5}],
    ids=str,
)
def test_the_gradients_are_those_of_autograd(task, given):
    (batch,) = batches(task, SAMPLES, 1)
    batch.noised.tokens[:, ::3] = 5
    with one_gradient_everywhere():
        found = differentiate(make_model(), batch, **given)
    for name, gradient in differentiate(make_model(), batch, **given).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_no_corrupted_token_gives_gradients_of_zero():
    (batch,) = batches("sft", SAMPLES, 1)
    model = make_model()
    with one_gradient_everywhere():
        tokens = batch.noised.tokens
        MaskedDiffusionObjective(model)(tokens, batch.tokens, torch.zeros(tokens.shape)).backward()
    assert all(not p.grad.any() for p in model.parameters())


def test_embeddings_of_their_own_keep_their_own_gradients():
    (batch,) = batches("sft", SAMPLES, 1)
    with pytest.raises(AssertionError), one_gradient_everywhere():  # which asserts that one was used
        gradients = differentiate(make_model(tied=False), batch)
    assert not torch.equal(gradients[EMBEDDING], gradients["lm_head.weight"])


def test_a_projection_that_is_not_differentiated_is_an_error():
    states = TiedGradient(nn.Embedding(5, 3)).embed(torch.tensor([[1, 2]]))
    with pytest.raises(RuntimeError, match="the projection that shares its weight was not"):
        states.sum().backward()


def test_a_gradient_is_taken_once():
    tied, gradient = TiedGradient(nn.Embedding(5, 3)), torch.ones(5, 3)
    tied.keep(gradient)
    assert tied.take() is gradient
    with pytest.raises(RuntimeError, match="was not"):
        tied.take()


def test_a_cpu_keeps_what_autograd_does():
    embedding = nn.Embedding(5, 3)
    assert not is_worthwhile(embedding, embedding.weight)


@pytest.mark.gpu
@needs_gpu
def test_where_a_gpu_uses_it():
    embedding = nn.Embedding(5, 3, device="cuda")
    weight = embedding.weight
    assert is_worthwhile(embedding, weight)
    assert not is_worthwhile(embedding, nn.Parameter(weight.detach()))
    with torch.no_grad():
        assert not is_worthwhile(embedding, weight)
    torch.use_deterministic_algorithms(True)
    try:
        assert not is_worthwhile(embedding, weight)
    finally:
        torch.use_deterministic_algorithms(False)
    handle = embedding.register_forward_hook(lambda *_: None)
    assert not is_worthwhile(embedding, weight)
    handle.remove()
    assert is_worthwhile(embedding, weight)
    for other in (embedding.requires_grad_(False), embedding.requires_grad_().bfloat16()):
        assert not is_worthwhile(other, other.weight)


@pytest.mark.gpu
@needs_gpu
def test_the_gradients_on_a_gpu():
    """Under autocast, where the embedding's gradient comes in bfloat16."""
    (batch,) = batches("pretraining", SAMPLES, 1)
    with torch.autocast("cuda", torch.bfloat16):
        found = differentiate(make_model().cuda(), batch)
        with patch("qwen3llada.objective.objective.is_worthwhile", lambda *_: False):
            expected = differentiate(make_model().cuda(), batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
