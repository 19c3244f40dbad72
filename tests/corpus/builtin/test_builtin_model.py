"""The built-in checkpoint: a Qwen3 model as transformers reads it, the same bits from the same parameters."""

import hashlib
import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer, Qwen3ForCausalLM

from qwen3llada.corpus.builtin.params import BuiltinParams
from qwen3llada.corpus.builtin.source import write_builtin_model

PARAMS = BuiltinParams(
    people=4,
    documents=200,
    bpe_tokens=400,
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    intermediate_size=48,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("builtin") / "model"
    write_builtin_model(path, PARAMS)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def digests(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


def test_files_of_the_hub(folder):
    names = {file.name for file in folder.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }


def test_transformers_reads_a_tied_qwen3(folder):
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model) is Qwen3ForCausalLM
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == model.config.eos_token_id
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["rope_parameters"]["rope_type"] == "default"
    assert model.model.layers[0].self_attn.q_norm.weight.shape == (PARAMS.head_dim,)
    with torch.no_grad():
        assert model(torch.arange(12)[None]).logits.isfinite().all()


def test_weights_have_the_asked_deviation_and_norms_are_one(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert (weight == 1).all(), name
        else:
            assert weight.std().item() == pytest.approx(PARAMS.initializer_range, rel=0.1), name
    first, second = model.model.layers
    assert not torch.equal(first.mlp.up_proj.weight, second.mlp.up_proj.weight)


def test_tokenizer_keeps_the_conventions_of_qwen3(folder, tokenizer):
    assert tokenizer.bos_token is None
    assert tokenizer.mask_token is None
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == PARAMS.bpe_tokens  # special tokens follow the BPE's own, as at 151643 in Qwen3
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [400, 401, 402]
    assert len(tokenizer) == 400 + 26  # Qwen3 has 26 added tokens
    assert tokenizer("Hello")["input_ids"] == tokenizer("Hello", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokenizer("<|im_end|><think>")["input_ids"], skip_special_tokens=True) == "<think>"
    assert AutoConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id


def test_embedding_is_padded_beyond_the_tokenizer(folder, tokenizer):
    rows = AutoConfig.from_pretrained(folder).vocab_size
    assert rows % 64 == 0
    assert 0 <= rows - len(tokenizer) - PARAMS.free_rows < 64


@pytest.mark.parametrize(
    "text", ["Mira's home is in Oakford.", "In 1984,\n\n  x+y=3\tdone ", "Größe → 日本語 🙂", "I'LL  can't", ""]
)
def test_tokenization_is_that_of_transformers_own_qwen_tokenizer(folder, tokenizer, text):
    """transformers builds Qwen's normalizer and pre-tokenizer itself; tokenizer.json must agree with them."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()
    merges = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    reference = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert reference(text)["input_ids"] == tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text


def test_chat_template_with_generation_prompt(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Hi."},
    ]
    said = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
    asked = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert asked == said + "<|im_start|>assistant\n"
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole == said + "<|im_start|>assistant\nHi.<|im_end|>\n"


def test_same_parameters_same_bits_whatever_the_global_generator(folder, tmp_path):
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    write_builtin_model(tmp_path / "again", PARAMS)
    assert torch.equal(torch.get_rng_state(), state)
    assert digests(tmp_path / "again") == digests(folder)


def test_other_seed_other_weights(folder, tmp_path):
    write_builtin_model(tmp_path / "other", PARAMS.model_copy(update={"seed": 1}))
    assert digests(tmp_path / "other")["model.safetensors"] != digests(folder)["model.safetensors"]


def test_more_tokens_than_merges_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"bpe_tokens=40000 must be at most \d+"):
        write_builtin_model(tmp_path / "model", PARAMS.model_copy(update={"bpe_tokens": 40000}))
    assert not (tmp_path / "model" / "model.safetensors").exists()
