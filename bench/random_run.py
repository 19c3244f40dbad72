"""A model with random weights and random training sequences, for training benchmarks."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.measure import MIB
from qwen3llada.artifacts import write_json
from qwen3llada.corpus.tokens.packing import MANIFEST, new_sequences
from qwen3llada.corpus.tokens.tokenizer import identity, load_tokenizer, template_identity

GIB = 1024 * MIB
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MASK, EOS, FIRST_WORD = 0, 1, 2

QWEN3_0_6B = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
TINY = {
    "vocab_size": 1088,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
}


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """Write a model with random weights, and a tokenizer with little more than a mask token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Qwen3LLadaForMaskedLM(Qwen3LLadaConfig(**config, tie_word_embeddings=True, mask_token_id=MASK))
    model.to(torch.bfloat16 if DEVICE.type == "cuda" else torch.float32).save_pretrained(folder / "model")
    words = Tokenizer(models.WordLevel({"<|mask|>": MASK, "<eos>": EOS, "word": FIRST_WORD}, unk_token="word"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, mask_token="<|mask|>", eos_token="<eos>")
    tokenizer.save_pretrained(folder / "model")
    clean()


def write_data(folder: Path, config: dict[str, Any], samples: int, length: int, *, prompts: str = "") -> None:
    """Write random sequences to `folder`/data; with `prompts`, to the folder of that name, each half prompt."""
    tokens = np.random.default_rng(0).integers(FIRST_WORD, config["vocab_size"], samples * length, dtype=np.int32)
    train = folder / (prompts or "data") / "train"
    train.mkdir(parents=True, exist_ok=True)
    with new_sequences(train, prompts=bool(prompts)) as writer:
        writer.add(tokens, np.full(samples, length), np.full(samples, length // 2, np.int32) if prompts else None)
        writer.close()
    tokenizer = load_tokenizer(folder / "model")
    template = template_identity(tokenizer, "plain" if prompts else None)
    write_json(train / MANIFEST, identity(tokenizer) | template)


def clean() -> None:
    """Reset after a candidate: its memory, compiled code, and Accelerate's precision."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    torch._dynamo.reset()
    torch.use_deterministic_algorithms(False)
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
