"""A checkpoint's own `generate` gives the sampler's tokens."""

from pathlib import Path

import pytest
import torch

from qwen3llada.modeling.custom_generate.generate import generate
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.sampler import generate as sampled

POLICIES = ["full", "block", "block_causal", "window"]


@pytest.fixture(scope="module")
def model(sizes):
    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    torch.manual_seed(3)
    config = {**sizes, "initializer_range": 0.5, "mask_token_id": 96, "eos_token_id": 1, "block_length": 8}
    return Qwen3LLadaForMaskedLM(Qwen3LLadaConfig(**config, window_blocks=1)).eval()


def prompt(length, seed=0):
    return torch.randint(2, 96, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("knobs", [{"steps": 9}, {"steps": 40}, {"confidence_threshold": 0.2}], ids=str)
@pytest.mark.parametrize("length", [1, 8, 13])
def test_the_tokens_are_the_samplers(model, monkeypatch, policy, knobs, length):
    monkeypatch.setattr(model.config, "attention_policy", policy)
    params = {"unmask": "threshold"} if "confidence_threshold" in knobs else {}
    asked = prompt(length, seed=length)
    ours = sampled(model, asked, DecodeParams(gen_length=22, **{"steps": 22} | knobs, **params))
    theirs = generate(model=model, input_ids=asked, max_new_tokens=22, **knobs)
    answer = theirs[0, length:]
    expected = ours.tokens[0]
    assert answer[: len(expected)].tolist() == expected.tolist()
    assert set(answer[len(expected) :].tolist()) <= {1}
    assert theirs[0, :length].tolist() == asked[0].tolist()


def test_an_answer_ends_with_its_eos(model):
    asked = prompt(5)
    free = generate(model=model, input_ids=asked, max_new_tokens=16, eos_token_id=[])[0, 5:].tolist()
    end = free[3]
    ended = generate(model=model, input_ids=asked, max_new_tokens=16, eos_token_id=end)[0, 5:].tolist()
    first = ended.index(end)
    assert first <= 3
    assert ended[first:] == [end] * (16 - first)


def test_prompts_padded_on_the_left_are_answered_as_alone(model):
    short, long = prompt(4, 1), prompt(9, 2)
    both = torch.cat([torch.nn.functional.pad(short, (5, 0)), long])
    mask = torch.tensor([[0] * 5 + [1] * 4, [1] * 9])
    answers = generate(model=model, input_ids=both, attention_mask=mask, max_new_tokens=12)[:, 9:]
    for row, alone in enumerate((short, long)):
        expected = generate(alone, model=model, max_new_tokens=12)[0, alone.shape[1] :]
        assert answers[row].tolist() == expected.tolist()


def test_with_a_temperature_answers_differ_and_hold_no_mask(model):
    torch.manual_seed(0)
    first, second = (generate(prompt(4), model=model, max_new_tokens=20, temperature=5.0) for _ in range(2))
    assert not torch.equal(first, second)
    assert 96 not in first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"do_sample": True, "top_k": 3}, "do_sample, top_k: not used when a model generates by unmasking"),
        ({"edit_threshold": 0.9, "factor": 1.0}, "edit_threshold, factor: not used when"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 20, "steps": 2}, "steps=2 must be at least the number of blocks to decode, 3"),
        ({"input_ids": None}, "input_ids must be given"),
    ],
)
def test_nothing_is_ignored_without_a_word(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(model=model, **{"input_ids": prompt(4)} | arguments)


def test_it_travels_with_a_saved_model(model, tmp_path):
    from qwen3llada.modeling.custom_generate import generate as module

    model.save_pretrained(tmp_path)
    assert (tmp_path / "custom_generate/generate.py").read_text() == Path(module.__file__).read_text()
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other/custom_generate").exists()
