"""A checkpoint of another vocabulary, widened for engines whose mask token is 151669."""

import json

import pytest
import torch

from bench.engine_models import MASK, VOCABULARY, export, widen
from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.modeling.loading import load_pretrained

TEXT = 60  # the mask token of the small model, after its text


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small model with attention biases, and that model widened."""
    small, wide = (tmp_path_factory.mktemp(name) for name in ("small", "wide"))
    torch.manual_seed(0)
    config = Qwen3LLadaConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.5,
        tie_word_embeddings=True,
        mask_token_id=TEXT,
        attention_bias=True,
        attention_policy="full",
    )
    model = Qwen3LLadaForMaskedLM(config).to(torch.bfloat16)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    model.save_pretrained(small)
    widen(small, wide)
    return small, wide


def test_it_computes_what_it_did(folders):
    small, wide = (load_pretrained(folder, dtype=torch.float32).eval() for folder in folders)
    ids = torch.randint(TEXT, (1, 12))
    with torch.no_grad():
        old, new = (model(input_ids=ids).logits for model in (small, wide))
        masked = [torch.cat([ids, torch.tensor([[mask] * 4])], 1) for mask in (TEXT, MASK)]
        at_masks = [model(input_ids=tokens).logits for model, tokens in zip((small, wide), masked, strict=True)]
    assert new.shape[-1] == VOCABULARY
    torch.testing.assert_close(new[..., :TEXT], old[..., :TEXT])
    torch.testing.assert_close(at_masks[1][..., :TEXT], at_masks[0][..., :TEXT])
    assert bool((new.argmax(-1) < TEXT).all())
    assert bool((at_masks[1].argmax(-1) < TEXT).all())


def test_biases_are_exported(folders, tmp_path):
    export(folders[1], tmp_path / "served")
    config = json.loads((tmp_path / "served" / "config.json").read_text())
    assert (config["attention_bias"], config["mask_token_id"], config["block_size"]) == (True, MASK, 32)
    index = json.loads((tmp_path / "served" / "model.safetensors.index.json").read_text())
    assert "model.layers.0.self_attn.q_proj.bias" in index["weight_map"]
