"""A run uses new registry entries for noise, loss and attention, and its checkpoints store the kind."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import changed
from tiny_settings import WORDS

from qwen3llada.batches.samples import Sample
from qwen3llada.batches.settings import batch_settings
from qwen3llada.batches.source import Source
from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.diffusion.noise_types import NOISE_TYPES, NoiseType
from qwen3llada.diffusion.schedules import SCHEDULES
from qwen3llada.modeling.attention import POLICIES, Policy
from qwen3llada.training.loop import evaluate, train, training_steps
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest

EOS = WORDS


def test_a_run_uses_new_entries_of_every_registry(fine_tuning, monkeypatch):
    """Half of the positions become token 7, an answer sees only its prompt, and the loss counts three times."""
    noise_type = NoiseType(corrupt=lambda tokens, m, *_: tokens.masked_fill(m, 7), draws=False, shows_mask=False)
    weigh = LOSSES["dllm"].weigh
    monkeypatch.setitem(SCHEDULES, "mine", lambda t: torch.full_like(t, 0.5))
    monkeypatch.setitem(NOISE_TYPES, "mine", noise_type)
    monkeypatch.setitem(POLICIES, "mine", Policy(sees=lambda query, key, window: (key < 0) & (query == query)))
    monkeypatch.setitem(LOSSES, "mine", replace(LOSSES["dllm"], weigh=lambda *a, **k: 3 * weigh(*a, **k)))
    noise = {"schedule": "mine", "noise_type": "mine", "eps": 1e-9}
    knobs = {"noise": noise, "attention": {"policy": "mine"}}
    runs = {name: start(changed(fine_tuning, loss_impl=name, **knobs), seed=1, template="plain") for name in LOSSES}
    batch = next(runs["mine"].data.steps(0)).micro_batches[0]
    assert batch.noised.p_mask.tolist() == [0.5] * len(batch.tokens)
    assert (batch.noised.tokens[batch.noised.masked] == 7).all()
    mask = runs["mine"].loss.attention_mask(runs["mine"].loss.prepare(batch))
    answer = batch.prompt_lengths[0]
    assert mask[0, 0, answer:, :answer].all()
    assert not mask[0, 0, :, answer:].any()
    assert evaluate(runs["mine"])[0] == pytest.approx(3 * evaluate(runs["dllm"])[0])
    losses = {name: next(training_steps(runs[name], StopRequest())).read().loss for name in ("mine", "dllm")}
    assert losses["mine"] == pytest.approx(3 * losses["dllm"])


@pytest.mark.parametrize("noise_type", NOISE_TYPES)
@pytest.mark.parametrize("method", ["none", "lora"])
def test_a_model_says_what_noise_it_was_trained_with(pretraining, noise_type, method):
    adapter: dict = {"method": method}
    if method == "lora":
        pytest.importorskip("peft")
        adapter |= {"rank": 2, "target_modules": ["q_proj"]}
    params = changed(pretraining, noise={"noise_type": noise_type}, adapter=adapter, max_steps=1, do_eval_loss=False)
    train(params, seed=1)
    assert json.loads((params.dst / "config.json").read_text())["noise_type"] == noise_type


class Answers:
    """One prompt of 3 tokens with an answer of 5 that ends with EOS, and a sample that exceeds the maximal length."""

    lengths = np.array([8, 20])

    def __len__(self):
        return 2

    def __getitem__(self, index):
        tokens = np.arange(self.lengths[index])
        tokens[-1] = EOS
        return Sample(tokens, 3)


@pytest.mark.parametrize(("block_length", "limit", "expected"), [(4, 16, 11), (8, 16, 11), (16, 16, 16), (16, 9, 9)])
def test_answers_are_never_continued_beyond_max_length(fine_tuning, block_length, limit, expected):
    attention = {"policy": "block", "block_length": block_length}
    params = changed(fine_tuning, attention=attention, max_length=limit)
    tokenizer = load_tokenizer(params.model)
    layout = {"seed": 0, "micro_batch_size": 2}
    for training in (True, False):
        source = Source(Answers(), batch_settings(params, tokenizer, training=training, **layout))
        batch = next(source.steps(0)).micro_batches[0]
        indices = source.samples_of(0, 0)
        lengths = dict(zip(indices, batch.valid.sum(1).tolist(), strict=True))
        assert lengths == {0: expected, 1: 20}
        row = indices.index(0)
        assert (batch.tokens[row, 7:expected] == EOS).all()
