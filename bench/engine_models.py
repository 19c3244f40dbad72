"""Checkpoints for the comparison with other engines, and their exports (`python -m bench.engines`).

Engines have mask token 151669 in their code, so a model of another vocabulary gets more rows: `widen`.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.random_run import QWEN3_0_6B
from qwen3llada.serving.formats import FORMATS
from qwen3llada.serving.mask_row import losing_row
from qwen3llada.serving.sdar import MASK_TOKEN_ID as MASK

VOCABULARY = QWEN3_0_6B["vocab_size"]
EOS = MASK - 1
WITH_BIASES = "sdar with biases"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def write_random(folder: Path, **sizes: Any) -> None:
    """A checkpoint with random weights in bfloat16, of Qwen3-0.6B's shapes unless `sizes` says otherwise."""
    torch.manual_seed(0)
    random_model(**sizes).to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)


def random_model(**sizes: Any) -> Any:
    """A model with random weights in float32, of Qwen3-0.6B's shapes unless `sizes` says otherwise."""
    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    config = Qwen3LLadaConfig(**QWEN3_0_6B | {"tie_word_embeddings": True} | _common() | sizes)
    with torch.device(DEVICE):
        return Qwen3LLadaForMaskedLM(config)


def _common() -> dict[str, Any]:
    return {
        "mask_token_id": MASK,
        "eos_token_id": EOS,
        "attention_policy": "block_causal",
        "block_length": 32,
        "prompt_template": "plain",
    }


def write_tokenizer(folder: Path) -> None:
    """A tokenizer whose text is the ids themselves: "17 4" has tokens 17 and 4."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {str(number): number for number in range(EOS)} | {"<eos>": EOS, "<mask>": MASK}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", mask_token="<mask>")
    fast.save_pretrained(folder)


def widen(source: Path, folder: Path) -> None:
    """Copy a checkpoint with its mask token at 151669 and rows for all ids below it, in bfloat16 and block_causal.

    The new rows of the head are the mean of its text rows, which never has the largest logit (`serving/mask_row.py`).
    They add a little to every softmax, here and in the engines alike.
    """
    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
    from qwen3llada.modeling.loading import load_pretrained

    old = load_pretrained(source, dtype=torch.bfloat16)
    text = old.config.mask_token_id
    if text > MASK:
        raise SystemExit(f"{source}: mask_token_id={text} must be at most {MASK}")
    values = old.config.to_dict() | _common() | {"vocab_size": VOCABULARY, "tie_word_embeddings": False}
    if old.config.mask_token_id != MASK:
        values |= {"bos_token_id": None, "pad_token_id": None}
    new = Qwen3LLadaForMaskedLM(Qwen3LLadaConfig(**values)).to(torch.bfloat16)
    state = old.state_dict()
    embedding, head = state["model.embed_tokens.weight"], old.get_output_embeddings().weight.detach()
    state["model.embed_tokens.weight"] = _widened(embedding, text, embedding[text])
    state["lm_head.weight"] = _widened(head, text, losing_row([head], text))
    new.load_state_dict(state)
    new.save_pretrained(folder)
    write_tokenizer(folder)


def _widened(rows: Tensor, text: int, other: Tensor) -> Tensor:
    """`rows` of the `text` first ids, and `other` for all ids after them. The mask stands after the text."""
    wide = other.repeat(VOCABULARY, 1)
    wide[:text] = rows[:text]
    return wide


def export(source: Path, folder: Path) -> None:
    """`python -m stages.export`; a model with attention biases, which it refuses, is exported with them."""
    from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaConfig
    from qwen3llada.serving.export import export_checkpoint

    FORMATS[WITH_BIASES] = with_biases()
    biases = Qwen3LLadaConfig.from_pretrained(source, trust_remote_code=False).attention_bias
    export_checkpoint(source, folder, WITH_BIASES if biases else "sdar")


def with_biases() -> Any:
    """The format "sdar" for models with attention biases, to see whether an engine computes them."""
    sdar = FORMATS["sdar"]

    def check(config: Any, folder: Path) -> None:
        plain = copy.copy(config)
        plain.attention_bias = False
        sdar.check(plain, folder)

    return replace(
        sdar,
        check=check,
        config=lambda config, eos, dtype: {**sdar.config(config, eos, dtype), "attention_bias": True},
    )
