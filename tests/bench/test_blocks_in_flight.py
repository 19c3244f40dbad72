"""Blocks in flight: one after the other they are the sampler's, and when another begins."""

from types import SimpleNamespace

import pytest
import torch

from bench.blocks_in_flight import RULES, Rule, chosen, decode, opened
from qwen3llada.sampling.sampler import DecodeParams, generate
from tests.objective.objective_steps import make_model


@pytest.mark.parametrize("prompt", [4, 6, 7])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_one_after_the_other_gives_the_samplers_tokens(prompt, count):
    model = make_model(attention_policy="block_causal", block_length=4).eval()
    prompt_ids = torch.arange(5, 5 + prompt).tolist()
    text = SimpleNamespace(model=model, ends=())
    length = -(-(prompt + 12) // 4) * 4 - prompt
    found, passes = decode(text, prompt_ids, Rule("", None, count), length, most=4)
    blocks = (prompt + length - 1) // 4 - prompt // 4 + 1
    steps = blocks * -(-4 // count)
    params = DecodeParams(gen_length=length, steps=steps, block_length=4)
    alone = generate(model, [prompt_ids], params, seed=0, eos_token_ids=())
    if prompt % 4 == 0:  # otherwise the sampler spreads the tokens of the first block over as many steps as another's
        assert passes == steps
        assert found == alone.tokens[0].tolist()
    elif count == 1:
        assert found == alone.tokens[0].tolist()


def test_a_block_begins_when_enough_of_the_one_before_is_there():
    rules = {rule.begin: rule for rule in RULES}
    states = {  # masks of each block of 4; the prompt has 6 tokens, so the first block of the answer has 2 of its own
        (0, 2, 4, 4): {None: [1], 3: [1], 2: [1], 1: [1], 0: [1, 2, 3]},
        (0, 1, 4, 4): {None: [1], 3: [1], 2: [1], 1: [1, 2], 0: [1, 2, 3]},
        (0, 0, 2, 4): {None: [2], 3: [2], 2: [2, 3], 1: [2, 3], 0: [2, 3]},
        (0, 0, 1, 2): {3: [2, 3], 2: [2, 3]},
    }
    for masked, expected in states.items():
        for begin, blocks in expected.items():
            assert opened(list(masked), 6, rules[begin], 4, most=4) == blocks, (masked, begin)
            assert opened(list(masked), 6, rules[begin], 4, most=1) == blocks[:1]


def test_a_pass_commits_the_surest_or_all_that_are_sure():
    sure, masked = torch.tensor([0.9, 0.2, 0.8, 0.7, 0.95]), torch.tensor([False, True, True, True, True])
    assert chosen(sure, masked, 0, 4, Rule("", 2, 2), first=True) == [2, 3]
    assert chosen(sure, masked, 1, 4, Rule("", 2, threshold=0.75), first=False) == [4, 2]
    assert chosen(sure, masked, 1, 3, Rule("", 2, threshold=0.99), first=True) == [2]
    assert chosen(sure, masked, 1, 3, Rule("", 2, threshold=0.99), first=False) == []
