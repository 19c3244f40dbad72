"""The tokenizer of a checkpoint: saved without traces of loading, and usable where this package is not installed."""

import json
import os
import subprocess
import sys

import pytest

from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.modeling.convert import convert_checkpoint
from qwen3llada.modeling.mask_token import load_any_tokenizer
from qwen3llada.modeling.tokenizer_files import LEFTOVERS

ELSEWHERE = """
import sys
from transformers import AutoTokenizer
for given in ({"trust_remote_code": False}, {}):
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **given)
    assert not [name for name in sys.modules if "qwen3llada" in name]
    print("\\nfound", tokenizer("hello <|mask|> world")["input_ids"], flush=True)
"""


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    """A checkpoint whose code would leave a trace if it were run."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert_checkpoint(source, folder)
    code = folder / "configuration_qwen3llada.py"
    code.write_text(f"open({str(folder.parent / 'ran')!r}, 'w')\n" + code.read_text())
    return folder


@pytest.mark.parametrize("load", [load_tokenizer, load_any_tokenizer], ids=lambda f: f.__name__)
def test_a_tokenizer_that_is_saved_again_holds_nothing_of_how_it_was_loaded(source, tmp_path, load):
    load(source).save_pretrained(tmp_path)
    assert not set(LEFTOVERS) & set(json.loads((tmp_path / "tokenizer_config.json").read_text()))


def test_a_process_without_the_package_gets_the_tokenizer_and_runs_no_code(converted, tmp_path):
    """Told trust_remote_code=False, Transformers asks nothing; not told, it asks, and takes silence as no."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ELSEWHERE, str(converted)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = load_any_tokenizer(converted)("hello <|mask|> world")["input_ids"]
    before, told, not_told = done.stdout.split("\nfound ")
    assert json.loads(told.splitlines()[0]) == json.loads(not_told) == expected
    assert "run the custom code" not in before
    assert "run the custom code" in told + done.stderr
    assert not (converted.parent / "ran").exists()
