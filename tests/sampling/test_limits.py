"""Parameters at the ends of their ranges: cost, meaning, and rejection before any work."""

import time

import pytest
import torch
from vocabulary import EOS, MASK, VOCAB

from qwen3llada.errors import InputError
from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.head import Head
from qwen3llada.sampling.remasking import UnmaskPlan
from qwen3llada.sampling.sampler import SampleParams, generate
from qwen3llada.section import MAX_TOKENS


def test_planning_costs_nothing_for_steps_beyond_the_tokens():
    begin = time.process_time()
    plan = UnmaskPlan.of(torch.tensor([[4, 3], [0, 2]]), 3 * 10**7)
    assert time.process_time() - begin < 0.1
    assert plan.counts.tolist() == [[[1, 1, 1, 1], [1, 1, 1, 0]], [[0, 0, 0, 0], [1, 1, 0, 0]]]
    assert plan.shares.tolist() == [[15 * 10**6, 15 * 10**6], [0, 3 * 10**7]]


def test_steps_beyond_the_tokens_are_one_token_a_step(model):
    exact, more = (SampleParams(steps=steps, gen_length=8, block_length=4) for steps in (8, MAX_TOKENS))
    prompts = [[1, 3, 5], [2, 4]]
    one, other = (generate(model, prompts, params, eos_token_ids=()) for params in (exact, more))
    assert [row.tolist() for row in one.tokens] == [row.tolist() for row in other.tokens]
    assert one.forward_passes == other.forward_passes == 8


@pytest.mark.parametrize("temperature", [1.0, 1e6, 1e300, 1e308, 1.7976931348623157e308])
@pytest.mark.parametrize("remasking", ["low_confidence", "random_topk", "entropy", "margin"])
def test_no_temperature_proposes_the_mask_token(temperature, remasking):
    """The mask token's logit is by far the largest; nothing is infinite that must not be."""
    logits = torch.randn(64, VOCAB)
    logits[:, MASK] = 100.0
    head = Head(
        project=lambda hidden: hidden.clone(),
        vocab_size=VOCAB,
        mask_token_id=MASK,
        temperature=temperature,
        cfg_scale=0.0,
        remasking=remasking,
    )
    keys = noise.row_keys(0, range(64))
    tokens, scores, log_probs, *_ = head.propose(
        logits, None, keys, keys, keys, torch.full((64,), 1e6, dtype=torch.float64)
    )
    assert not (tokens == MASK).any()
    assert scores.isfinite().all()
    assert log_probs.isfinite().all()


def test_the_largest_temperature_draws_all_tokens_alike():
    """In the limit only the noise decides, so each of the V - 1 tokens is drawn equally often."""
    rows = 20_000
    logits = torch.linspace(-20, 20, VOCAB).expand(rows, VOCAB)
    head = Head(
        project=lambda hidden: hidden.clone(),
        vocab_size=VOCAB,
        mask_token_id=MASK,
        temperature=1e6,
        cfg_scale=0.0,
        remasking="low_confidence",
    )
    keys = noise.row_keys(1, range(rows))
    tokens = head.propose(logits, None, keys, keys, keys, torch.zeros(rows, dtype=torch.float64)).tokens
    counts = torch.bincount(tokens, minlength=VOCAB).double()
    expected = rows / (VOCAB - 1)
    others = torch.arange(VOCAB) != MASK
    chi_square = ((counts[others] - expected) ** 2 / expected).sum()
    assert counts[MASK] == 0
    assert chi_square < 2 * VOCAB  # its mean is V - 2, its standard deviation sqrt(2V)


def test_the_last_prompt_is_checked_before_the_first_is_answered(text, monkeypatch):
    monkeypatch.setattr(
        "qwen3llada.sampling.dialogue.text_model.generate", lambda *_, **__: pytest.fail("work has begun")
    )
    params = SampleParams(steps=8, gen_length=8, block_length=4, batch_size=1)
    with pytest.raises(InputError, match=r"prompts\[1\] of 60 tokens \+ 8 new ones must not exceed .*=64"):
        next(text.answers([[1, 2], [1] * 60], params, seed=0))
    few = SampleParams(steps=1, gen_length=8, block_length=4)
    with pytest.raises(InputError, match="steps=1 must be at least the number of blocks"):
        next(text.answers([[1, 2]], few, seed=0))


def test_a_block_beyond_the_models_positions_is_refused(model):
    params = SampleParams(steps=8, gen_length=8, block_length=65)
    with pytest.raises(InputError, match="block_length=65 must not exceed the model's max_position_embeddings=64"):
        generate(model, [[1]], params, eos_token_ids=(EOS,))
