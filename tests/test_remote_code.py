"""Code in a checkpoint's folder is never run, and there is no prompt asking for it."""

import ast
import json
from pathlib import Path

import pytest
from test_layers import ROOT

from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.modeling import mask_token

EVIL = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({ran!r}).touch()
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def folder(tmp_path):
    """A tokenizer whose configuration names a class in a file beside it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "<eos>": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(tmp_path / "model")
    config = tmp_path / "model/tokenizer_config.json"
    auto_map = {"auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}, "tokenizer_class": "EvilTokenizer"}
    config.write_text(json.dumps(json.loads(config.read_text()) | auto_map))
    (tmp_path / "model/evil.py").write_text(EVIL.format(ran=str(tmp_path / "ran")))
    return tmp_path / "model"


@pytest.mark.parametrize("load", [load_tokenizer, mask_token.load_any_tokenizer], ids=lambda f: f.__module__)
def test_a_tokenizer_with_code_of_its_own_is_refused_without_a_question(folder, monkeypatch, load):
    questions = []
    monkeypatch.setattr("builtins.input", lambda prompt="": questions.append(prompt) or "y")
    with pytest.raises(ValueError, match=r"needs code that lies in the folder .* which is never run"):
        load(folder)
    assert questions == []
    assert not (folder.parent / "ran").exists()


def calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [node for node in named if isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"]


def test_every_loading_in_the_package_says_so():
    """peft's own loading takes weights alone."""
    found = 0
    for path in sorted((ROOT / "qwen3llada").rglob("*.py")):
        for call in calls(path):
            if ast.unparse(call.func) != "PeftModel.from_pretrained":
                found += 1
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert given.get("trust_remote_code") == "False", f"{path}:{call.lineno}"
    assert found >= 5
