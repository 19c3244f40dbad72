"""Every kind of difference between a source and a converted checkpoint is found and named."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from qwen3llada.modeling import analyze
from qwen3llada.modeling.analyze import compare_checkpoints
from qwen3llada.modeling.comparison_table import show
from qwen3llada.modeling.convert import convert_checkpoint

CHANGED = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def converted(source, tmp_path):
    convert_checkpoint(source, tmp_path / "out")
    return tmp_path / "out"


def rewrite(folder, change):
    values = load_file(folder / "model.safetensors")
    change(values)
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})


def printed(report, width=100):
    console = Console(file=StringIO(), width=width)
    show(report, console)
    return console.file.getvalue()


def test_a_conversion_is_identical(source, converted):
    report = compare_checkpoints(source, converted)
    count = sum(value.numel() for value in load_file(source / "model.safetensors").values())
    assert report.ok
    assert {tensor.status for tensor in report.tensors} == {"identical"}
    assert report.source_parameters == report.converted_parameters == count
    assert report.embedding_parameters == 320 * 48
    assert not report.tied
    assert (report.mask.id, report.mask.token, report.mask.source_token) == (296, "<|mask|>", None)
    assert (report.mask.tokenizer_size, report.mask.embedding_rows, report.mask.free_rows) == (297, 320, 23)
    report.raise_if_wrong()
    assert "identical but for what conversion adds" in printed(report)


def test_the_report_is_json(source, converted):
    values = json.loads(json.dumps(compare_checkpoints(source, converted).as_dict(), allow_nan=False))
    assert values["ok"] is True
    assert values["summary"] == {"identical": len(values["tensors"])}
    assert values["mask"]["id"] == 296


@pytest.mark.parametrize("tied", [False, True])
def test_added_rows_are_no_mismatch(make_source, tmp_path, tied):
    source = make_source(rows=296, tie_word_embeddings=tied)
    convert_checkpoint(source, tmp_path / "out")
    report = compare_checkpoints(source, tmp_path / "out")
    assert report.ok
    grown = {tensor.name: tensor.detail for tensor in report.tensors if tensor.status == "grown"}
    names = ["model.embed_tokens.weight"] if tied else ["lm_head.weight", "model.embed_tokens.weight"]
    assert grown == dict.fromkeys(names, "24 rows added")
    assert report.converted_parameters - report.source_parameters == 24 * 48 * len(names)


def bump(values, by=0.5):
    flat = values[CHANGED].view(-1)
    flat[7], flat[-1] = flat[7] + by, flat[-1] + 2 * by


def negate_zero(values):
    values[CHANGED].view(-1)[3] = -0.0


@pytest.mark.parametrize(
    ("change", "name", "status", "detail"),
    [
        (bump, CHANGED, "value", "2 of 3,840 values differ, by at most 1"),
        (lambda v: v.pop(CHANGED), CHANGED, "missing", "not in the converted checkpoint"),
        (lambda v: v.update(extra=torch.zeros(2)), "extra", "unexpected", "not in the source"),
        (lambda v: v.update({CHANGED: v[CHANGED].float()}), CHANGED, "dtype", "was BF16, is F32"),
        (lambda v: v.update({CHANGED: v[CHANGED][:-1].clone()}), CHANGED, "shape", "was [80, 48], is [79, 48]"),
        (lambda v: v.update({CHANGED: torch.cat([v[CHANGED]] * 2)}), CHANGED, "shape", "was [80, 48], is [160, 48]"),
        (lambda v: v["lm_head.weight"][319].fill_(9), "lm_head.weight", "value", "48 of 15,360 values differ"),
    ],
)
def test_each_kind_of_mismatch_is_named(source, converted, monkeypatch, change, name, status, detail):
    monkeypatch.setattr(analyze, "ROWS_AT_ONCE", 32)  # several chunks, the last of them short
    rewrite(converted, change)
    report = compare_checkpoints(source, converted)
    assert not report.ok
    (wrong,) = report.mismatches
    assert (wrong.name, wrong.status) == (name, status)
    assert detail in wrong.detail
    with pytest.raises(ValueError, match=name):
        report.raise_if_wrong()
    text = printed(report, width=200)
    assert name in text
    assert status in text
    assert "NOT the same model" in text


def test_values_are_compared_as_bits(make_source, tmp_path):
    """NaN equals itself, and 0 is not -0."""
    source = make_source(dtype=torch.float32)
    rewrite(source, lambda values: values[CHANGED].view(-1)[3:5].copy_(torch.tensor([0.0, torch.nan])))
    convert_checkpoint(source, tmp_path / "out")
    assert compare_checkpoints(source, tmp_path / "out").ok
    rewrite(tmp_path / "out", negate_zero)
    (wrong,) = compare_checkpoints(source, tmp_path / "out").mismatches
    assert wrong.detail == "1 of 3,840 values differ, by at most 0"


def test_a_mismatch_in_grown_rows_is_seen(make_source, tmp_path):
    source = make_source(rows=296)
    convert_checkpoint(source, tmp_path / "out")
    rewrite(tmp_path / "out", lambda values: values["lm_head.weight"][295].add_(1))
    (wrong,) = compare_checkpoints(source, tmp_path / "out").mismatches
    assert (wrong.name, wrong.status) == ("lm_head.weight", "value")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_token_id": 5}, "mask_token_id=5, but the tokenizer's mask token has the id 296"),
        ({"mask_token_id": None}, "mask_token_id=None is not a row"),
        ({"vocab_size": 384}, "vocab_size=384, but the embedding has 320 rows"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings was False, is True"),
        ({"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}, "is not one of them"),
    ],
)
def test_a_config_that_does_not_fit_is_a_problem(source, converted, values, message):
    path = converted / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    report = compare_checkpoints(source, converted)
    assert not report.ok
    assert any(message in problem for problem in report.problems)
    with pytest.raises(ValueError, match=r"is not .* converted"):
        report.raise_if_wrong()
    assert "problem: " in printed(report)


def test_checkpoints_that_cannot_be_compared_are_errors(source, converted, tmp_path):
    for pair, error, message in [
        ((source, source), ValueError, "is a qwen3 checkpoint, but must be a qwen3llada one"),
        ((converted, converted), ValueError, "is a qwen3llada checkpoint"),
        ((source, tmp_path / "absent"), FileNotFoundError, "no such folder"),
    ]:
        with pytest.raises(error, match=message):
            compare_checkpoints(*pair)
