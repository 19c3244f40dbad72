"""Shared parameters of these tests' runs, and the model that they train."""

from pathlib import Path
from typing import Any

import torch

WORDS = 40


def common(tiny: Path, out: Path, kind: str) -> dict:
    return {
        "model": tiny / "model",
        "data": tiny / kind,
        "dst": out / "model",
        "output_dir": out / "work",
        "reports": out / "reports" / kind,
        "max_length": 16,
        "max_steps": 6,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_steps": 0,
        "logging_steps": 2,
        "eval_every_steps": 4,
        "optim": {"lr": 0.01, "warmup_ratio": 0.1},
        "noise": {"random_length_prob": 0.2},
    }


def write_model(folder: Path, **changes: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    vocabulary = {f"w{i}": i for i in range(WORDS)} | {"<eos>": WORDS, "<|mask|>": WORDS + 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", mask_token="<|mask|>")
    shapes = {
        "vocab_size": 48,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    config = Qwen3LLadaConfig(**shapes | changes, tie_word_embeddings=True, mask_token_id=WORDS + 1)
    torch.manual_seed(0)
    Qwen3LLadaForMaskedLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
