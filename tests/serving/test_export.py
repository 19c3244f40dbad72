"""The exported folder: its contents, its refusals, and the tokens that an engine gives with it."""

import json
import shutil
from pathlib import Path

import engine_loop
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from qwen3llada.errors import InputError
from qwen3llada.modeling.exported import compare_exported
from qwen3llada.modeling.loading import load_pretrained
from qwen3llada.params import load_stage
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.sampler import generate
from qwen3llada.serving.export import export_checkpoint
from qwen3llada.serving.formats import FORMATS

MASK, EOS = 151669, 151668


@pytest.fixture(scope="module")
def exported(servable, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "served"
    export_checkpoint(servable, folder)
    return folder


@pytest.fixture(scope="module")
def models(make_checkpoint, tmp_path_factory):
    """Ours, and the exported tensors as plain Qwen3. Weights that make clear choices of many kinds."""
    model = make_checkpoint(hidden_size=16, initializer_range=1.0, tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp("served") / "served"
    export_checkpoint(model, folder)
    return load_pretrained(model), engine_loop.load(folder)


def tensors(folder):
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        found |= load_file(file)
    return found


def test_the_folder_holds_what_the_engines_read(servable, exported):
    names = {path.name for path in exported.iterdir()}
    assert {"config.json", "configuration_sdar.py", "generation_config.json", "tokenizer.json"} <= names
    assert {"tokenizer_config.json", "SERVING.md", "dllm.yaml", "model.safetensors.index.json"} <= names
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["SDARForCausalLM"]
    assert config["auto_map"] == {"AutoConfig": "configuration_sdar.SDARConfig"}
    exact = {"model_type": "sdar", "hidden_size": 8, "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-6}
    exact |= {"max_position_embeddings": 128, "attention_bias": False, "attention_dropout": 0.0, "rope_theta": 5000.0}
    exact |= {"rope_scaling": None, "sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": False}
    exact |= {"vocab_size": 151680, "eos_token_id": EOS, "pad_token_id": EOS, "torch_dtype": "float32"}
    exact |= {"block_size": 4, "mask_token_id": MASK, "max_window_layers": 28, "bos_token_id": None}
    assert {name: config[name] for name in exact} == exact
    assert "rope_parameters" not in config
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == [EOS]
    assert (exported / "dllm.yaml").read_text() == "block_size: 4\nthreshold: 0.95\n"
    said = (exported / "SERVING.md").read_text()
    assert f"--model-path {exported} " in said
    assert "--dllm-block-length 4 " in said
    assert not {"DIR", "BLOCK"} & set(said.replace("/", " ").split())


def test_the_engines_config_keeps_the_base_of_rope(exported):
    config = AutoConfig.from_pretrained(exported, trust_remote_code=True)
    assert type(config).__name__ == "SDARConfig"
    assert (config.rope_theta, config.rope_scaling, config.head_dim) == (5000.0, None, 8)
    assert (config.tie_word_embeddings, config.eos_token_id, config.mask_token_id) == (False, EOS, MASK)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_every_tensor_is_the_checkpoints_but_for_the_masks_row(make_checkpoint, tmp_path, tied, dtype):
    model = make_checkpoint(shard="3MB", tie_word_embeddings=tied)
    export_checkpoint(model, tmp_path / "served", dtype=dtype)
    before, after = tensors(model), tensors(tmp_path / "served")
    head = before.get("lm_head.weight", before["model.embed_tokens.weight"])
    assert set(after) == {*before, "lm_head.weight"}
    assert ("lm_head.weight" in before) != tied
    for name, tensor in after.items():
        old = (head if name == "lm_head.weight" else before[name]).to(tensor.dtype)
        assert tensor.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        unlike = (tensor != old).reshape(len(tensor), -1).any(-1).nonzero()[:, 0].tolist()
        assert unlike == ([MASK] if name == "lm_head.weight" else [])
    statuses = {t.name: t.status for t in compare_exported(model, tmp_path / "served")}
    assert statuses.pop("lm_head.weight") == "replaced"
    assert set(statuses.values()) == {"identical"}


def test_a_tensor_that_differs_is_found(servable, exported, tmp_path):
    from safetensors.torch import save_file

    folder = shutil.copytree(exported, tmp_path / "served")
    for file in folder.glob("*.safetensors"):
        values = load_file(file)
        if "model.norm.weight" in values:
            values["model.norm.weight"][3] += 1e-6
        if "lm_head.weight" in values:
            values["lm_head.weight"][7] += 1
        save_file(values, file)
    wrong = {t.name: t for t in compare_exported(servable, folder) if t.status == "value"}
    assert set(wrong) == {"model.norm.weight", "lm_head.weight"}
    assert wrong["lm_head.weight"].detail == "2 rows differ, the first is 7"


def test_memory_does_not_grow_with_the_checkpoint(servable, tmp_path, monkeypatch):
    """Nothing is read but in pieces of tensors."""
    from qwen3llada.modeling import shards
    from qwen3llada.serving import export

    largest = []
    chunks = shards.Shards.chunks

    def watched(self, name, rows):
        for chunk in chunks(self, name, rows):
            largest.append(chunk.nbytes)
            yield chunk

    monkeypatch.setattr(shards.Shards, "chunks", watched)
    monkeypatch.setattr(shards.Shards, "load", None)
    export.export_checkpoint(servable, tmp_path / "served")
    assert max(largest) == export.ROWS_AT_ONCE * 8 * 4


@pytest.mark.parametrize(("block", "length"), [(4, 8), (4, 37), (32, 37)])
@pytest.mark.parametrize("strategy", ["low_confidence_static", "low_confidence_dynamic"])
def test_an_engines_schedule_gives_the_samplers_tokens(models, block, length, strategy):
    ours, plain = models
    prompt = torch.randint(0, 1000, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    static, new = strategy == "low_confidence_static", 30
    blocks = (length + new - 1) // block - length // block + 1
    per_block = block // 2 if static else None
    knobs = {"gen_length": new, "block_length": block, "backend": "eager", "steps": blocks * (per_block or block)}
    if not static:
        knobs |= {"unmask": "threshold", "confidence_threshold": 0.3}
    expected = generate(ours, [prompt], DecodeParams(**knobs), eos_token_ids=[EOS]).tokens[0].tolist()
    got = engine_loop.serve(
        plain, prompt, new, block=block, mask=MASK, ends=[EOS], strategy=strategy, steps=per_block, threshold=0.3
    )
    assert got == expected
    assert len(set(got)) > 3


def test_the_tokenizer_is_the_checkpoints_and_asks_as_it_was_taught(servable, exported):
    from qwen3llada.corpus.conversations.records import Exchange
    from qwen3llada.sampling.dialogue.text_model import TextModel

    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=False)
    assert tokenizer.mask_token_id == MASK
    text = TextModel(load_pretrained(servable), AutoTokenizer.from_pretrained(servable))
    asked = text.encode([Exchange("w3 w4", "", "w9", (("w1", "w2"),))])[0]
    turns = [("system", "w9"), ("user", "w1"), ("assistant", "w2"), ("user", "w3 w4")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == asked
    written = json.loads((exported / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only"} & set(written)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mask_token_id": 151670}, "mask_token_id=151670 must be 151669"),
        ({"attention_policy": "full"}, "attention policy full must be block_causal"),
        ({"attention_policy": "window"}, "attention policy window must be block_causal"),
        ({"attention_policy": ["window", "block_causal"]}, r"\['block_causal', 'window'\] must be block_causal in"),
        ({"attention_bias": True}, "attention_bias=true must be false"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu must be silu"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "rope_type=yarn must be default",
        ),
    ],
)
def test_what_engines_compute_otherwise_is_refused_by_name(servable, tmp_path, config, message):
    folder = shutil.copytree(servable, tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(InputError, match=message) as caught:
        export_checkpoint(folder, tmp_path / "served")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "served").exists()


def test_other_things_that_cannot_be_exported(servable, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no model"):
        export_checkpoint(tmp_path / "empty", tmp_path / "served")
    folder = shutil.copytree(servable, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="adapters alone"):
        export_checkpoint(folder, tmp_path / "served")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.txt").touch()
    with pytest.raises(InputError, match=r"holds a\.txt, which this project did not write"):
        export_checkpoint(servable, tmp_path / "other")
    assert not (tmp_path / "served").exists()


def test_an_export_may_be_written_again_but_not_over_a_model(servable, exported):
    export_checkpoint(servable, exported)
    with pytest.raises(InputError, match="must not be the input"):
        export_checkpoint(servable, servable)


def test_a_new_format_is_an_entry(monkeypatch):
    monkeypatch.setitem(FORMATS, "mine", FORMATS["sdar"])
    assert load_stage(["--format", "mine"], own="export")[0].export.format == "mine"


def test_the_code_beside_an_export_imports_transformers_alone():
    import ast

    tree = ast.parse(FORMATS["sdar"].code[0].read_text())
    assert [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)] == ["transformers"]
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Import)]


def test_the_stage_compares_an_export_and_writes_no_report(servable, exported, tmp_path, monkeypatch, capsys):
    from qwen3llada.modeling.analyze_request import AnalyzeRequest
    from stages import analyze

    monkeypatch.chdir(tmp_path)
    analyze.main(None, AnalyzeRequest(model=servable, exported=exported))
    assert "tensors are those of" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="model and exported must be given together"):
        AnalyzeRequest(model=servable)
