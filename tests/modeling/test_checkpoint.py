"""Configuration, saving and loading, and the Auto classes with and without the package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM, Qwen3LLadaModel

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_is_the_same(model, tokens, tmp_path, shard, dtype):
    model.to(dtype).save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is Qwen3LLadaForMaskedLM
    about_files = {"_name_or_path", "transformers_version"}
    before, after = model.config.to_dict(), loaded.config.to_dict()
    assert all(after[key] == value for key, value in before.items() if key not in about_files)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    if dtype == torch.float32:  # `to` also rounds the frequencies of the positions, loading does not
        with torch.no_grad():
            assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert type(AutoModel.from_pretrained(tmp_path)) is Qwen3LLadaModel
    assert type(AutoConfig.from_pretrained(tmp_path)) is Qwen3LLadaConfig


def test_a_tied_head_stays_tied(sizes, tmp_path):
    model = Qwen3LLadaForMaskedLM(Qwen3LLadaConfig(**sizes, mask_token_id=96, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    loaded = Qwen3LLadaForMaskedLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_the_config_keeps_what_the_sampler_needs(sizes, tmp_path):
    knobs = {"mask_token_id": 3, "attention_policy": "block", "block_length": 8, "prompt_template": "chat"}
    Qwen3LLadaConfig(**sizes, **knobs).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert {name: getattr(config, name) for name in knobs} == knobs
    assert (config.use_cache, config.is_causal) == (False, False)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"mask_token_id": 97}, r"mask_token_id=97 must be a row of the embedding, in \[0, 97\)"),
        ({"mask_token_id": -1}, "mask_token_id=-1 must be"),
        ({"block_length": 0}, "block_length=0 must be at least 1"),
        ({"is_causal": True}, "is_causal=True must be False"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_window=8 must be None"),
    ],
)
def test_a_config_that_cannot_be_is_refused(sizes, knobs, message):
    with pytest.raises(ValueError, match=message):
        Qwen3LLadaConfig(**sizes, **{"mask_token_id": 1} | knobs)


def test_a_model_needs_a_mask_token(sizes):
    with pytest.raises(ValueError, match="mask_token_id=None must be the id"):
        Qwen3LLadaForMaskedLM(Qwen3LLadaConfig(**sizes))


def run(code, *arguments, cwd, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_files_that_travel_import_torch_and_transformers_alone():
    import ast

    allowed = {"torch", "transformers", "configuration_qwen3llada", *sys.stdlib_module_names}
    for name in ("configuration_qwen3llada", "modeling_qwen3llada"):
        tree = ast.parse((ROOT / "qwen3llada" / "modeling" / f"{name}.py").read_text())
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert {module.split(".")[0] for module in modules} <= allowed


def test_importing_the_package_imports_nothing_heavy():
    run("import sys, qwen3llada; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()", cwd=ROOT)


def test_the_package_has_no_other_names():
    import qwen3llada

    assert {*qwen3llada.__all__, "__version__"} <= {*dir(qwen3llada)}
    with pytest.raises(AttributeError, match="module 'qwen3llada' has no attribute 'sample'"):
        qwen3llada.sample  # noqa: B018
