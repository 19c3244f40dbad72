"""Conversion: the same bits, a mask token, and clear errors with nothing written."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3ForCausalLM

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.errors import InputError
from qwen3llada.modeling import convert
from qwen3llada.modeling.convert import ConvertParams, convert_checkpoint, with_mean_rows

FIRST_FREE = 296  # of the tokenizer's ids, see conftest


def tensors(folder):
    """All tensors of a checkpoint as bytes, with shape and type."""
    found = {}
    for file in Path(folder).glob("*.safetensors"):
        for name, value in load_file(file).items():
            found[name] = (value.dtype, value.shape, bytes(value.contiguous().flatten().view(torch.uint8).tolist()))
    return found


def metadata(file):
    with safe_open(file, framework="pt") as reader:
        return reader.metadata()


@pytest.fixture
def changed(source, tmp_path):
    """A copy of the source to break."""
    return Path(shutil.copytree(source, tmp_path / "changed"))


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_every_tensor_is_copied_bit_for_bit(make_source, tmp_path, dtype, tied, shard):
    source = make_source(dtype=dtype, tie_word_embeddings=tied, shard=shard)
    report = convert_checkpoint(source, tmp_path / "out")
    assert tensors(tmp_path / "out") == tensors(source)
    assert ("lm_head.weight" in tensors(source)) != tied
    names = {path.name for path in source.glob("model*safetensors*")}
    assert {path.name for path in (tmp_path / "out").glob("model*safetensors*")} == names
    assert (len(names) > 2) == (shard == "20KB")
    assert report.rows_added == 0
    assert report.tensors == len(tensors(source))
    loaded = Qwen3LLadaForMaskedLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == dtype
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_the_model_is_the_source_but_for_the_mask(source, tmp_path):
    convert_checkpoint(source, tmp_path / "out")
    qwen3 = Qwen3ForCausalLM.from_pretrained(source, dtype=torch.float32)
    ours = Qwen3LLadaForMaskedLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens = torch.randint(0, 270, (2, 9))
    causal = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    with torch.no_grad():
        assert torch.allclose(ours(tokens, attention_mask=causal).logits, qwen3(tokens).logits, rtol=0, atol=1e-5)
    before, after = qwen3.config.to_dict(), ours.config.to_dict()
    ours_own = {"model_type", "architectures", "use_cache", "_name_or_path"}
    assert {key: value for key, value in before.items() if after[key] != value and key not in ours_own} == {}
    assert after["use_cache"] is False


def test_the_tokenizers_files_hold_nothing_of_how_it_was_loaded(source, tmp_path):
    convert_checkpoint(source, tmp_path / "out")
    written = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "trust_remote_code"} & set(written)


def test_the_mask_token_takes_the_first_free_row(source, tmp_path):
    report = convert_checkpoint(source, tmp_path / "out")
    tokenizer, original = AutoTokenizer.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(source)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (report.mask_token, report.mask_token_id, report.mask_token_origin) == ("<|mask|>", FIRST_FREE, "added")
    assert config["mask_token_id"] == tokenizer.mask_token_id == FIRST_FREE == len(original)
    assert config["vocab_size"] == report.vocab_size == 320
    text = "hello <|mask|> world<|endoftext|>"
    assert tokenizer(text)["input_ids"].count(FIRST_FREE) == 1
    assert tokenizer("hello world, the fox")["input_ids"] == original("hello world, the fox")["input_ids"]
    assert tokenizer.decode([FIRST_FREE], skip_special_tokens=True) == ""
    assert tokenizer.get_vocab() == original.get_vocab() | {"<|mask|>": FIRST_FREE}


def test_files_beside_the_weights(source, tmp_path):
    convert_checkpoint(source, tmp_path / "out")
    for name in ("generation_config.json", "vocab.json", "merges.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    code = Path(convert.__file__).parent
    for name in ("configuration_qwen3llada.py", "modeling_qwen3llada.py"):
        assert (tmp_path / "out" / name).read_bytes() == (code / name).read_bytes()
    auto_map = json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForMaskedLM"}
    messages = [{"role": "user", "content": "hi"}]
    templates = [
        AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for folder in (source, tmp_path / "out")
    ]
    assert templates[0] == templates[1]
    assert "hi" in templates[0]


def test_a_mask_token_of_the_tokenizers_own_is_used(source, changed, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(changed)
    report = convert_checkpoint(changed, tmp_path / "out")
    assert (report.mask_token, report.mask_token_id, report.mask_token_origin) == ("[MASK]", FIRST_FREE, "tokenizer")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_without_a_free_row_embedding_and_head_grow(make_source, tmp_path, tied, shard):
    source = make_source(rows=FIRST_FREE, tie_word_embeddings=tied, shard=shard)
    report = convert_checkpoint(source, tmp_path / "out")
    before, after = tensors(source), tensors(tmp_path / "out")
    assert (report.vocab_size, report.rows_added, report.mask_token_id) == (320, 24, FIRST_FREE)
    assert before.keys() == after.keys()
    for name in before:
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert after[name][1] == (320, 48)
            assert after[name][2].startswith(before[name][2])
        else:
            assert after[name] == before[name]
    model = Qwen3LLadaForMaskedLM.from_pretrained(tmp_path / "out")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    rows = model.model.embed_tokens.weight
    mean = rows[:FIRST_FREE].double().mean(0).to(rows.dtype)
    assert torch.equal(rows[FIRST_FREE:], mean.expand(24, -1))
    assert metadata(next((tmp_path / "out").glob("*.safetensors")))["format"] == "pt"
    if shard == "20KB":
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(len(value[2]) for value in after.values())
    again = convert_checkpoint(source, tmp_path / "again")
    assert tensors(tmp_path / "again") == after
    assert again.parameters == report.parameters


@pytest.mark.parametrize("rows", [320, FIRST_FREE])
def test_a_tied_head_that_is_stored_nevertheless_stays_equal(make_source, tmp_path, rows):
    """As in Qwen3-0.6B, whose file holds the embedding twice."""
    source = make_source(rows=rows, tie_word_embeddings=True)
    twice = load_file(source / "model.safetensors")
    twice["lm_head.weight"] = twice["model.embed_tokens.weight"].clone()
    save_file(twice, source / "model.safetensors", metadata={"format": "pt"})
    convert_checkpoint(source, tmp_path / "out")
    after = tensors(tmp_path / "out")
    assert after["lm_head.weight"] == after["model.embed_tokens.weight"]
    assert after["lm_head.weight"][1] == (320, 48)
    model = Qwen3LLadaForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_config_in_the_form_of_the_hub_keeps_its_meaning(changed, tmp_path):
    """Older Qwen3 configs, from before Transformers 5, have other keys for the rotary base and the dtype."""
    values = json.loads((changed / "config.json").read_text())
    for key in ("rope_parameters", "dtype", "layer_types"):
        del values[key]
    values |= {"rope_theta": 1000000, "rope_scaling": None, "torch_dtype": "bfloat16", "use_cache": True}
    (changed / "config.json").write_text(json.dumps(values | {"sliding_window": None, "max_window_layers": 28}))
    convert_checkpoint(changed, tmp_path / "out")
    model = Qwen3LLadaForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.config.rope_parameters == {"rope_theta": 1000000, "rope_type": "default"}
    assert model.config.use_cache is False
    expected = 1000000 ** -(torch.arange(0, 16, 2) / 16)
    assert torch.allclose(model.model.rotary_emb.inv_freq, expected)


def test_the_mean_is_taken_over_all_rows_in_pieces(monkeypatch):
    monkeypatch.setattr(convert, "ROWS_AT_ONCE", 3)
    weight = torch.randn(10, 4)
    grown = with_mean_rows(weight, 2)
    assert torch.equal(grown[:10], weight)
    assert torch.allclose(grown[10:], weight.mean(0).expand(2, -1))


def test_a_free_id_can_be_given(source, tmp_path, caplog):
    report = convert_checkpoint(source, tmp_path / "out", 310)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.mask_token_id == report.mask_token_id == 310
    assert tokenizer.mask_token == "<|mask|>"
    assert caplog.records == []
    text = "hello world"
    assert tokenizer(text)["input_ids"] == AutoTokenizer.from_pretrained(source)(text)["input_ids"]


def test_an_id_of_real_text_is_accepted_with_a_warning(source, tmp_path, caplog):
    token = AutoTokenizer.from_pretrained(source).convert_ids_to_tokens(265)
    report = convert_checkpoint(source, tmp_path / "out", 265)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").mask_token_id == 265
    assert report.shadowed_token == token
    (record,) = caplog.records
    assert repr(token) in record.getMessage()
    assert "mask_token=265" in record.getMessage()
    assert tensors(tmp_path / "out") == tensors(source)


@pytest.mark.parametrize(
    ("mask_token", "message"),
    [(320, r"mask_token=320 must be a row of the embedding, in \[0, 320\)"), (270, "which ends a text")],
)
def test_an_impossible_id_is_refused_before_anything_is_written(source, tmp_path, mask_token, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "out", mask_token)
    assert os.listdir(tmp_path) == []


def drop_tensor(folder, name="model.norm.weight"):
    kept = load_file(folder / "model.safetensors")
    del kept[name]
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def add_tensor(folder):
    more = load_file(folder / "model.safetensors") | {"score.weight": torch.zeros(2, 2)}
    save_file(more, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: edit_json(f / "config.json", **LLAMA), ValueError, r"is a llama checkpoint \(LlamaForCausalLM\)"),
        (lambda f: edit_json(f / "config.json", model_type="qwen3_moe"), ValueError, "is a qwen3_moe checkpoint"),
        (lambda f: edit_json(f / "config.json", quantization_config={"bits": 8}), ValueError, "is quantised"),
        (lambda f: edit_json(f / "config.json", hidden_size=64), ValueError, r"has shape \[.*\] instead of \["),
        (lambda f: edit_json(f / "config.json", hidden_size="wide"), ValueError, "config.json: .*hidden_size"),
        (lambda f: edit_json(f / "config.json", tie_word_embeddings=[]), ValueError, "config.json: "),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "config.json: line 1 is not JSON"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "has no config.json"),
        (lambda f: shutil.rmtree(f), FileNotFoundError, "no such folder"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "neither model.safetensors nor"),
        (truncate, ValueError, "model.safetensors: truncated or corrupt"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), ValueError, "model.safetensors: truncated or corrupt"),
        (drop_tensor, ValueError, "model.norm.weight is missing"),
        (lambda f: drop_tensor(f, "lm_head.weight"), ValueError, "lm_head.weight is missing"),
        (add_tensor, ValueError, "score.weight is not one of them"),
        (lambda f: (f / "tokenizer.json").write_text("{"), ValueError, "no tokenizer that can be loaded"),
        (
            lambda f: [p.unlink() for p in f.iterdir() if "token" in p.name or "vocab" in p.name],
            ValueError,
            "no tokeni",
        ),
    ],
)
def test_a_source_that_is_not_right_is_named_and_nothing_is_written(changed, tmp_path, spoil, error, message):
    spoil(changed)
    with pytest.raises(error, match=message) as caught:
        convert_checkpoint(changed, tmp_path / "deep" / "out")
    assert str(changed) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("dtype", "named"),
    [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.uint8, "U8"), (torch.float64, "F64")],
)
def test_tensors_that_are_no_plain_weights_are_refused_by_name(changed, tmp_path, dtype, named):
    """One tensor in the right shape, with no quantization_config anywhere."""
    name = "model.layers.1.mlp.up_proj.weight"
    values = load_file(changed / "model.safetensors")
    values[name] = values[name].to(dtype)
    save_file(values, changed / "model.safetensors", metadata={"format": "pt"})
    message = rf"{name} has dtype {named}, but must be float32, float16, bfloat16;"
    with pytest.raises(InputError, match=message) as caught:
        convert_checkpoint(changed, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_sliding_window_is_refused(make_source, tmp_path):
    source = make_source(use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match="sliding_window=8 must be None"):
        convert_checkpoint(source, tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def sharded(make_source):
    folder = make_source(shard="20KB")
    return folder, sorted(folder.glob("*.safetensors"))


def test_missing_and_broken_shards_are_named(sharded, tmp_path):
    folder, files = sharded
    kept = files[1].read_bytes()
    files[1].write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match=f"{files[1].name}: truncated or corrupt"):
        convert_checkpoint(folder, tmp_path / "out")
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"{files[1].name}: named in model.safetensors.index.json, but missing"):
        convert_checkpoint(folder, tmp_path / "out")
    shutil.copyfile(files[0], files[1])
    with pytest.raises(ValueError, match=f"tensor .* is in {files[0].name}, too"):
        convert_checkpoint(folder, tmp_path / "out")
    index = folder / "model.safetensors.index.json"
    edit_json(index, weight_map={"a": "../elsewhere.safetensors"})
    with pytest.raises(ValueError, match="must be the name of a file in the same folder"):
        convert_checkpoint(folder, tmp_path / "out")
    edit_json(index, weight_map={})
    with pytest.raises(ValueError, match="must have a weight_map"):
        convert_checkpoint(folder, tmp_path / "out")
    edit_json(index, weight_map={"model.norm.weight": files[0].name})
    with pytest.raises(ValueError, match="not both in it and in the files"):
        convert_checkpoint(folder, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_one_shard_is_in_memory_at_a_time(make_source, tmp_path, monkeypatch):
    """Also if rows are added: the tensors of a file are freed before the next is read."""
    import gc
    import weakref

    source = make_source(rows=FIRST_FREE, shard="20KB")
    alive: list[weakref.ref] = []
    load = convert.Shards.load

    def spy(self, file):
        gc.collect()
        assert not [ref for ref in alive if ref() is not None]
        values, about = load(self, file)
        alive.extend(weakref.ref(value) for value in values.values())
        return values, about

    monkeypatch.setattr(convert.Shards, "load", spy)
    convert_checkpoint(source, tmp_path / "out")
    assert 0 < len(alive) <= 4  # the files with embedding and head; all others are copied without being loaded


@pytest.mark.parametrize("function", ["shutil.copyfile", "safetensors.torch.save_file"])
def test_a_disk_that_fills_up_leaves_what_was_there(make_source, tmp_path, monkeypatch, function):
    import errno

    source = make_source(rows=FIRST_FREE, shard="20KB")
    convert_checkpoint(source, tmp_path / "out", 5)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(function, full)
    with pytest.raises(OSError, match=r"no space left on the disk for .*out, [\d,]+ bytes to write, [\d,]+ bytes free"):
        convert_checkpoint(source, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} == before
    assert os.listdir(tmp_path) == ["out"]


def test_a_disk_that_is_too_small_is_known_before(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OSError, match=r"bytes to write, 10 bytes free"):
        convert_checkpoint(source, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_destination_is_replaced_only_if_it_is_a_conversion(source, tmp_path):
    out = tmp_path / "out"
    convert_checkpoint(source, out, 5)
    convert_checkpoint(source, out)
    assert json.loads((out / "config.json").read_text())["mask_token_id"] == FIRST_FREE
    precious = tmp_path / "precious"
    precious.mkdir()
    convert_checkpoint(source, precious)
    shutil.rmtree(precious)
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for target, message in [
        (precious, "holds thesis.txt, which this project did not write"),
        (precious / "thesis.txt", "must be a folder"),
        (source, "must not be the input src"),
        (source.parent, "must not be the input src.*, nor hold it"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(source, target)
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_a_converted_checkpoint_is_not_a_source(source, tmp_path):
    convert_checkpoint(source, tmp_path / "out")
    with pytest.raises(ValueError, match="is a qwen3llada checkpoint"):
        convert_checkpoint(tmp_path / "out", tmp_path / "twice")


def test_the_knob_is_auto_or_an_id():
    assert ConvertParams().mask_token == "auto"
    assert ConvertParams(mask_token="126336").mask_token == 126336
    for wrong in (-1, "mask", 1.5, None):
        with pytest.raises(ValidationError):
            ConvertParams(mask_token=wrong)
