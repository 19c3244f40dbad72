"""How many characters of a prompt are refused before it is encoded."""

import unicodedata
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qwen3llada.serving.prompts import NFC_SHRINKS, encoded, most_characters


def byte_level(*merges, normalizer=None, before=(), added=()):
    """A model of 8 positions, with a byte-level tokenizer that joins these pairs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, to_bytes])
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens(list(added))
    config = SimpleNamespace(max_position_embeddings=8)
    return SimpleNamespace(tokenizer=tokenizer, model=SimpleNamespace(config=config))


MERGES = (("a", "b"), ("ab", "c"))


def test_the_bound_is_the_longest_token_at_each_position():
    text = byte_level(*MERGES)
    assert most_characters(text) == 8 * 3
    assert len(encoded(text, ["abc" * 8])[0]) == 8
    assert most_characters(byte_level(*MERGES, normalizer=normalizers.NFC())) == 8 * 3 * NFC_SHRINKS


@pytest.mark.parametrize(
    "unbounded",
    [
        {"normalizer": normalizers.Strip()},
        {"before": [pre_tokenizers.WhitespaceSplit()]},
        {"before": [pre_tokenizers.Split(" ", "removed")]},
        {"added": [AddedToken("<x>", rstrip=True)]},
    ],
    ids=str,
)
def test_a_tokenizer_that_may_drop_characters_gives_no_bound(unbounded):
    assert most_characters(byte_level(*MERGES, **unbounded)) is None


def test_words_give_no_bound(text):
    assert most_characters(text) is None


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("abc \u1100\u1161\u11a8\u03b1\u0313\u0300\u0345"), max_size=200))
def test_no_text_within_the_positions_is_refused(said):
    text = byte_level(*MERGES, normalizer=normalizers.NFC())
    if len(encoded(text, [said])[0]) <= 8:
        assert len(said) <= most_characters(text)


def test_nfc_joins_at_most_four_code_points():
    assert max(len(unicodedata.normalize("NFD", chr(i))) for i in range(0x110000)) == NFC_SHRINKS
