"""The tokenizer of a checkpoint: saved without traces of loading, and usable where this package is not installed."""

import json

import pytest

from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.modeling.mask_token import load_any_tokenizer
from qwen3llada.modeling.tokenizer_files import LEFTOVERS


@pytest.mark.parametrize("load", [load_tokenizer, load_any_tokenizer], ids=lambda f: f.__name__)
def test_a_tokenizer_that_is_saved_again_holds_nothing_of_how_it_was_loaded(source, tmp_path, load):
    load(source).save_pretrained(tmp_path)
    assert not set(LEFTOVERS) & set(json.loads((tmp_path / "tokenizer_config.json").read_text()))
