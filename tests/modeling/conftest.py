"""Tiny models of both kinds with the same weights."""

import pytest


@pytest.fixture(scope="session")
def sizes():
    """Small enough for milliseconds, with grouped keys and values, and a head width that is not hidden size / heads."""
    return {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,  # far from uniform attention, so that a wrong mask shows
    }


@pytest.fixture
def qwen3(sizes):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**sizes)).eval()


@pytest.fixture
def model(sizes, qwen3):
    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    ours = Qwen3LLadaForMaskedLM(Qwen3LLadaConfig(**sizes, mask_token_id=96)).eval()
    ours.load_state_dict(qwen3.state_dict())  # strict: the names of the weights are Qwen3's
    return ours


@pytest.fixture
def tokens():
    import torch

    return torch.randint(0, 96, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """Qwen's kind of tokenizer: byte-level BPE, special tokens behind, no BOS, no mask; 296 tokens in all."""
    from qwen3llada.corpus.builtin.model import write_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, ["the quick brown fox jumps over the lazy dog", "hello world " * 3], bpe_tokens=270)
    return folder


@pytest.fixture(scope="session")
def make_source(sizes, tokenizer_folder, tmp_path_factory):
    """make_source(rows=320, dtype=…, shard="1GB", **config): a Qwen3 checkpoint folder as the hub would serve it."""
    import shutil

    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    def make(rows=320, dtype=torch.bfloat16, shard="1GB", **config):
        folder = tmp_path_factory.mktemp("qwen3")
        torch.manual_seed(0)
        config = {"eos_token_id": 270, "bos_token_id": 270, **config}
        model = Qwen3ForCausalLM(Qwen3Config(**sizes | {"vocab_size": rows, **config})).to(dtype)
        model.generation_config = GenerationConfig(eos_token_id=[270, 272], do_sample=True, top_k=20)
        model.save_pretrained(folder, max_shard_size=shard)
        shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
        return folder

    return make


@pytest.fixture(scope="session")
def source(make_source):
    """Read-only: 320 rows, 24 of them free, bfloat16, one file, a head of its own."""
    return make_source()
