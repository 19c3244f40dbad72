"""Sampling warns once if the model's training never showed the mask token."""

import logging

import pytest

from qwen3llada.diffusion.noise_types import NOISE_TYPES
from qwen3llada.sampling.request import warn_of_noise
from qwen3llada.sampling.sampler import SampleParams, generate

PARAMS = SampleParams(gen_length=2, block_length=2, steps=2)


@pytest.mark.parametrize("noise_type", [*NOISE_TYPES, "of a later version"])
def test_sampling_warns_once(model, noise_type, caplog, monkeypatch):
    monkeypatch.setattr(model.config, "noise_type", noise_type)
    monkeypatch.setattr(model.config, "attention_policy", "full")
    warn_of_noise.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            generate(model, [[1, 2]], PARAMS, seed=0)
    expected = noise_type == "random_replace"
    assert caplog.text.count("trained with noise_type=random_replace, which never shows the mask token") == expected
