"""The tokenizer of a checkpoint: saved without traces of loading, and usable where this package is not installed."""

import json
import shutil

import pytest

from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.errors import InputError
from qwen3llada.modeling.mask_token import load_any_tokenizer
from qwen3llada.modeling.tokenizer_files import LEFTOVERS


@pytest.mark.parametrize("load", [load_tokenizer, load_any_tokenizer], ids=lambda f: f.__name__)
def test_a_tokenizer_that_is_saved_again_holds_nothing_of_how_it_was_loaded(source, tmp_path, load):
    load(source).save_pretrained(tmp_path)
    assert not set(LEFTOVERS) & set(json.loads((tmp_path / "tokenizer_config.json").read_text()))


@pytest.mark.parametrize("load", [load_tokenizer, load_any_tokenizer], ids=lambda f: f.__name__)
def test_a_tokenizer_without_its_vocabulary_is_refused(source, tmp_path, load):
    """Transformers makes one of the special tokens alone, whose ids are others."""
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    (folder / "tokenizer.json").unlink()
    assert len(load(folder)) == 296, "vocab.json and merges.txt say the same"
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"has no vocabulary, only \d+ special tokens.*tokenizer\.json"):
        load(folder)
