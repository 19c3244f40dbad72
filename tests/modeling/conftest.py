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
