"""Tokens drawn with keyed Gumbel noise have the distribution of the softmax."""

import math

import pytest
import torch
from vocabulary import MASK, VOCAB

from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.head import Head

DRAWS = 60_000
LOGITS = {
    "spread": torch.linspace(-6, 6, VOCAB, dtype=torch.float64),
    "flat": torch.zeros(VOCAB, dtype=torch.float64),
    "peaked": torch.tensor([8.0] + [0.0] * (VOCAB - 1), dtype=torch.float64),
}


def excess(tokens, probabilities):
    """How many standard deviations Pearson's chi-square lies above its mean. Rare tokens are one cell together.

    Chi-square with k degrees of freedom is close to normal after the cube root (Wilson and Hilferty 1931).
    """
    counts, expected = torch.bincount(tokens, minlength=len(probabilities)).double(), probabilities * len(tokens)
    rare = expected < 10
    assert counts[expected == 0].sum() == 0
    observed, expected = (
        torch.cat([x[~rare], x[rare].sum()[None]]) if expected[rare].sum() >= 10 else x[~rare]
        for x in (counts, expected)
    )
    freedom = len(observed) - 1
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    return ((chi_square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def keys_of(seed, count=DRAWS):
    return noise.step_keys(noise.row_keys(seed, range(count // 8)), 3, 8)[noise.STREAMS.index("token")].flatten()


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)
def test_the_noise_draws_from_the_softmax(logits):
    drawn = (logits + noise.gumbel_float64(keys_of(1), VOCAB)).argmax(-1)
    assert excess(drawn, torch.softmax(logits, -1)) < 4


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_sampler_draws_from_the_softmax_at_its_temperature(temperature):
    logits = LOGITS["spread"].float()
    head = Head(
        project=lambda hidden: hidden.clone(),
        vocab_size=VOCAB,
        mask_token_id=MASK,
        temperature=temperature,
        cfg_scale=0.0,
        remasking="low_confidence",
    )
    keys = keys_of(2)
    tokens, _, log_probs, *_ = head.propose(
        logits.expand(DRAWS, -1), None, keys, keys, keys, torch.zeros(DRAWS, dtype=torch.float64)
    )
    allowed = logits.double().index_fill(0, torch.tensor([MASK]), -torch.inf)
    assert excess(tokens, torch.softmax(allowed / temperature, -1)) < 4
    assert torch.allclose(log_probs, torch.log_softmax(allowed, -1)[tokens], atol=1e-5)  # without the temperature


def test_the_comparison_sees_too_few_bits():
    """Noise from 8 bits has ties, which the first token wins; noise of another scale is another temperature."""

    def coarse(keys, count):
        return noise.gumbel(((noise.uniform(keys, count) * 256).floor() + 0.5) / 256)

    def wide(keys, count):
        return 1.1 * noise.gumbel_float64(keys, count)

    for wrong, logits in ((coarse, LOGITS["flat"]), (wide, LOGITS["spread"])):
        drawn = (logits + wrong(keys_of(1), VOCAB)).argmax(-1)
        assert excess(drawn, torch.softmax(logits, -1)) > 8
