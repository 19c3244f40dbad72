"""Checks of a run before its first stage."""

import pytest

from flows.environment import ROOT
from flows.outcome import StageFailedError
from flows.workspace import put_parameters, workspace


def test_a_wrong_override_is_said_to_be_one(tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    said = r"^stage parameters: overrides: sft\.optim\.lr: given -1, "
    with pytest.raises(StageFailedError, match=said), workspace(None, ["sft.optim.lr=-1"], tmp_path):
        pytest.fail("a stage could run")


def test_a_folder_that_dvc_would_remove_is_refused_before_the_first_stage(tmp_path):
    """By the real package's command, because dvc removes a stage's outputs before the stage can check them."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("mine")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert "\n  dst: out/qwen3llada-converted" in text
    text = text.replace("\n  dst: out/qwen3llada-converted", "\n  dst: texts")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(StageFailedError, match=r"convert\.dst='texts' holds a\.txt"), workspace(None, [], tmp_path):
        pytest.fail("a stage could run")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[1", "expected ',' or ']', but got '<stream end>'"),
        ("{a: 1, a: 2}", 'found duplicate key "a" with value "2" (original value: "1")'),
        ("2020-99-99", "month must be in 1..12"),
    ],
)
def test_an_override_that_is_no_yaml_is_one_line(tmp_path, value, said):
    with pytest.raises(StageFailedError) as failed:
        put_parameters(None, [f"sft.optim.lr={value}"], tmp_path)
    override = f"sft.optim.lr={value}"
    assert str(failed.value) == f"stage parameters: {override!r}: the value is not valid YAML: {said}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "kind"), [("- a\n", "list"), ("[]", "list"), ("hello", "str")])
def test_a_parameter_set_without_sections_is_refused(tmp_path, text, kind):
    (tmp_path / "list.yaml").write_text(text)
    said = f"list.yaml: must hold a mapping of sections, given {kind}$"
    with pytest.raises(StageFailedError, match=said):
        put_parameters("list.yaml", ["a.b=1"], tmp_path)
