"""The likelihood under a plain Qwen3, against a loop over its logits."""

import math

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from qwen3llada.errors import InputError
from qwen3llada.evaluation.autoregressive import autoregressive_nll, load_qwen3

TEXTS = [[5, 9, 2, 30, 7], [1, 2], [11, 3, 8, 8, 20, 6, 4], [9]]


@pytest.fixture(scope="module")
def qwen3():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, initializer_range=0.5)).eval()


@torch.no_grad()
def by_hand(model, text, first):
    """Nats of the tokens from `first` on."""
    log_q = model(torch.tensor([text])).logits[0].log_softmax(-1)
    return -sum(float(log_q[i - 1, text[i]]) for i in range(first, len(text)))


def test_it_is_the_chain_rule_of_the_logits(qwen3):
    found = autoregressive_nll(qwen3, TEXTS, start_token=0, batch_tokens=12)
    rows = [by_hand(qwen3, [0, *text], 1) for text in TEXTS]
    assert found.nats == pytest.approx(sum(rows) / 15, rel=1e-5)
    assert found.tokens == 15
    rest = [row - found.nats * len(text) for row, text in zip(rows, TEXTS, strict=True)]
    assert found.standard_error == pytest.approx(math.sqrt(sum(r * r for r in rest) * 4 / 3) / 15, rel=1e-4)


def test_prompts_are_seen_and_not_counted(qwen3):
    prompts = [2, 1, 4]
    found = autoregressive_nll(qwen3, TEXTS[:3], prompt_lengths=prompts)
    rows = [by_hand(qwen3, text, prompt) for text, prompt in zip(TEXTS, prompts, strict=False)]
    assert found.nats == pytest.approx(sum(rows) / 7, rel=1e-5)
    assert found.tokens == 7
    assert autoregressive_nll(qwen3, TEXTS[:3], prompt_lengths=prompts, batch_tokens=1).nats == pytest.approx(
        found.nats, rel=1e-6
    )


def test_a_text_needs_something_before_it(qwen3):
    with pytest.raises(InputError, match=r"sequences\[0\] must have a prompt: there is no start token"):
        autoregressive_nll(qwen3, TEXTS)


def test_the_checkpoint_is_a_qwen3(qwen3, tmp_path, capfd):
    qwen3.save_pretrained(tmp_path / "plain")
    capfd.readouterr()
    loaded = load_qwen3(tmp_path / "plain", dtype=torch.float32)
    assert "Loading weights" not in capfd.readouterr().err  # no progress bar for what takes no time
    assert autoregressive_nll(loaded, TEXTS, start_token=0).nats == autoregressive_nll(qwen3, TEXTS, start_token=0).nats
    (tmp_path / "plain/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="is a llama checkpoint, but must be a qwen3 checkpoint"):
        load_qwen3(tmp_path / "plain")
