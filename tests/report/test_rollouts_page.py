"""The page about post-training needs the config and the tokenizer of the model, not its weights."""

import re

import pytest

from qwen3llada import Qwen3LLadaConfig
from qwen3llada.artifacts import write_json, write_jsonl
from qwen3llada.corpus.builtin.model import write_tokenizer
from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.errors import InputError
from qwen3llada.report.rollouts_page import write_rollouts_page

MASK, END = 300, 301  # END: an end token that config.json alone knows


@pytest.fixture
def folders(tmp_path):
    """(reports of a run with one rollout, folder of its model without weights)"""
    reports, model = tmp_path / "reports", tmp_path / "model"
    write_tokenizer(model, ["the quick brown fox"], bpe_tokens=270)
    tokenizer = load_tokenizer(model)
    Qwen3LLadaConfig(vocab_size=320, mask_token_id=MASK, eos_token_id=[END]).save_pretrained(model)
    tokens = [*tokenizer.encode("fox", add_special_tokens=False), MASK, END, tokenizer.eos_token_id]
    row = {
        "sample": 0,
        "prompt_text": "the quick",
        "prompt_tokens": [1, 2],
        "reference": "fox",
        "answer": "fox",
        "answer_tokens": len(tokens),
        "reward": 0.5,
        "tokens": tokens,
        "steps": [*range(1, len(tokens) + 1)],
        "confidence": [0.5] * len(tokens),
    }
    write_jsonl(reports / "rollouts.jsonl", [row])
    write_jsonl(reports / "heldout.jsonl", [row])
    write_jsonl(reports / "metrics.jsonl", [{"step": step, "train/reward": 0.5} for step in (1, 2)])
    facts = {"steps": 2, "eval_reward_before": 0.1, "eval_reward": 0.5, "best_step": None, "best_eval_reward": None}
    write_json(reports / "summary.json", facts)
    return reports, model


@pytest.mark.parametrize("adapters", [False, True])
def test_masks_and_ends_are_shown_without_reading_weights(folders, adapters):
    reports, model = folders
    if adapters:  # alone, beside a base that is not there any more
        write_json(model / "adapter_config.json", {"base_model_name_or_path": str(model / "gone")})
    page = write_rollouts_page(reports, model, "trace").read_text(encoding="utf-8")
    pieces = re.findall(r"<span data-step=[^>]*>([^<]*)</span>", page)
    assert "".join(pieces) == "fox▒∎∎"


def test_a_folder_without_a_model_is_named(folders):
    reports, model = folders
    (model / "config.json").unlink()
    with pytest.raises(InputError, match=f"{model}: no model: config.json is missing"):
        write_rollouts_page(reports, model, "trace")
