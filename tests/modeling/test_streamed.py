"""Weights read module by module are those that `load_pretrained` reads at once."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.errors import InputError
from qwen3llada.modeling.loading import load_pretrained
from qwen3llada.modeling.streamed import StreamedWeights, empty_model, materialise

SHAPES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "mask_token_id": 1}
SHAPES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path):
    Qwen3LLadaForMaskedLM(Qwen3LLadaConfig(**SHAPES, tie_word_embeddings=request.param)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_module_by_module_gives_the_model_that_is_loaded_at_once(folder, dtype):
    model = empty_model(folder, dtype=dtype, attn_implementation="sdpa")
    assert all(parameter.is_meta for parameter in model.parameters())
    weights = StreamedWeights(folder, model)
    for module in (*model.model.layers, model):
        assert any(parameter.is_meta for parameter in module.parameters())
        materialise(model, module, weights, CPU)
    expected = load_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == model.config.tie_word_embeddings
    torch.testing.assert_close(dict(model.named_parameters()), dict(expected.named_parameters()), rtol=0, atol=0)
    torch.testing.assert_close(dict(model.named_buffers()), dict(expected.named_buffers()), rtol=0, atol=0)
    assert model.config.to_dict() == expected.config.to_dict()
    assert model.training
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(model(tokens).logits, expected.train()(tokens).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.pop("model.norm.weight"), "model.norm.weight is missing$"),
        (lambda found: found.update({"model.norm.weight": torch.ones(8)}), r"has shape \[8\] instead of \[16\]$"),
        (lambda found: found.update({"model.more": torch.ones(8)}), "model.more is not one of them$"),
        (dict.clear, "model.embed_tokens.weight is missing and .* more$"),
    ],
)
def test_files_that_lack_a_tensor_are_refused_in_one_line(folder, change, words):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = empty_model(folder, dtype=torch.float32, attn_implementation="sdpa")
    with pytest.raises(InputError, match=f"its weights are not those that config.json describes: .*{words}"):
        StreamedWeights(folder, model)


def test_integers_are_not_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.norm\.weight has dtype I8, but must be float32, float16, bfloat16"):
        StreamedWeights(folder, empty_model(folder, dtype=torch.float32, attn_implementation="sdpa"))


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    model = empty_model(folder, dtype=torch.float32, attn_implementation="sdpa")
    with pytest.raises(InputError, match=r"no model that can be loaded: .*neither model\.safetensors nor"):
        StreamedWeights(folder, model)
