"""Joined projections and rolled rotary embeddings compute what Transformers' layers do."""

import copy

import pytest
import torch

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.training.fused_projections import fuse_projections, joined_linear, rotate


def test_rotation_has_the_same_bits_as_transformers():
    from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 5, 8), torch.randn(2, 1, 5, 8)
    cos, sin = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    expected = apply_rotary_pos_emb(query, key, cos, sin)
    torch.testing.assert_close((rotate(query, cos, sin), rotate(key, cos, sin)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_hidden_states_and_gradients_are_those_of_separate_projections(tiny, implementation):
    separate = Qwen3LLadaForMaskedLM.from_pretrained(tiny / "model", attn_implementation=implementation)
    joined = copy.deepcopy(separate)
    fuse_projections(joined)
    tokens = torch.randint(48, (3, 10), generator=torch.Generator().manual_seed(0))
    valid = torch.arange(10) < torch.tensor([10, 7, 4])[:, None]
    for mask in (None, valid):
        results = []
        for model in (separate, joined):
            model.zero_grad()
            logits = model(input_ids=tokens, attention_mask=mask).logits
            logits.square().mean().backward()
            results.append((logits, [parameter.grad for parameter in model.parameters()]))
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_joined_linear_keeps_the_layers_apart():
    first, second = torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(4, 2, bias=False)
    x = torch.randn(3, 4)
    torch.testing.assert_close(joined_linear(x, first, second), (first(x), second(x)))
