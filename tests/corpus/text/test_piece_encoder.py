"""Texts encoded piece by piece equal the tokenizer's encoding of the whole text."""

import copy
import random

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qwen3llada.corpus.text import piece_encoder as pieces
from qwen3llada.corpus.text.piece_encoder import PATTERN, PieceEncoder, can_cut

# Difficult places for a cut: contractions, combining marks, letters that become ASCII, every kind of whitespace,
# control characters that Python takes for white space, line ends of three systems, digits of two scripts.
NASTY = (
    *"aZ 'sſ5٣.,!_-/\\<>|{}\"`~\n\t\r\x0b\x0c\x00\x1c\x1f\x7f\x85\xa0\xad\u1680",
    *"\u180e\u2003\u200b\u2028\u202f\u3000\ufeff",
    *"\u0301\u0338\u0323éüΩ\u212a\u212b\u037e\u1fef\u0915\u093c\u1100\u1161\u11a8東🙂\U0001f1e9",
    *(
        "fish",
        "Fish",
        "don't",
        "I'LL",
        "it'sa",
        "1984",
        "  ",
        "   ",
        "\n\n",
        "\r\n",
        " \n ",
        "\n    ",
        "...",
        "?!",
        ").",
    ),
    *("<think>", "<thin", "k>", "<|mask|>", "über", "e\u0301", "東京", "x = (a[0]+1)"),
)


def random_texts(count, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choices(NASTY, k=rng.randrange(40))) for _ in range(count)]


@pytest.fixture(scope="module")
def backend():
    """A tokenizer of Qwen's kind, with merges over everything that its training text repeats."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(random_texts(3000, 1), trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet))
    backend.add_special_tokens([AddedToken("<|mask|>", normalized=False)])
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    backend.encode_special_tokens = True
    return backend


def ids(encoder, texts):
    return [np.frombuffer(part, np.int32).tolist() for part in encoder(texts)]


def test_pieces_have_the_ids_of_the_whole_text(backend):
    texts = random_texts(6000)
    encoder = PieceEncoder(backend)
    expected = [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]
    assert max(max(found, default=0) for found in expected) > 2900  # merges are used, and the added token
    assert ids(encoder, texts[:3000]) == expected[:3000]
    assert ids(encoder, texts) == expected  # half of them are cached


def test_a_cut_is_where_the_pre_tokenizer_cuts():
    """For any merges: the pre-tokens of the pieces are those of the text."""
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")

    def pre_tokens(text):
        return [token for token, _ in split.pre_tokenize_str(normalizers.NFC().normalize_str(text))]

    cuts = 0
    for text in random_texts(4000, 2):
        found = pieces._PIECE.findall(text)
        assert "".join(found) == text
        assert [token for piece in found for token in pre_tokens(piece)] == pre_tokens(text), repr(text)
        cuts += len(found)
    assert cuts > 4000 * 6  # of about 20 items a text, most of which cannot be cut at


def test_most_pieces_of_ordinary_text_are_words():
    text = "It's a dog's life, isn't it? In 1984:\n\tif x[0] == 'a':\n        return self.words(a, b)\n\nEnd."
    found = pieces._PIECE.findall(text)
    assert found[:12] == ["It", "'s", " a", " dog", "'s", " life", ",", " isn", "'t", " it", "?", " In"]
    assert found[12:17] == [" 1", "9", "8", "4", ":\n"]
    assert " return" in found
    assert "\n\n" not in found  # it belongs to the preceding piece


def test_what_is_remembered_is_bounded(backend, monkeypatch):
    monkeypatch.setattr(pieces, "MOST", 20)
    encoder = PieceEncoder(backend)
    long = "z" * (pieces.LONGEST + 1)
    for number in range(9):
        texts = [f"a{chr(98 + number)}{letter} {long}" for letter in "abcdefg"]
        assert ids(encoder, texts) == [backend.encode(text, add_special_tokens=False).ids for text in texts]
        assert len(encoder._known) <= 20 + 7
        assert f" {long}" not in encoder._known


def _without_nfc(backend):
    backend.normalizer = None


def _lowercase(backend):
    backend.normalizer = normalizers.Lowercase()


def _other_pattern(backend):
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other = pre_tokenizers.Split(Regex(PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([other, to_bytes])


def _whole_pattern_of_gpt2(backend):
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _prefix(backend):
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])


def _greedy_token(backend):
    backend.add_tokens([AddedToken("<x>", lstrip=True, normalized=False)])


def _dropout(backend):
    backend.model.dropout = 0.1


@pytest.mark.parametrize(
    ("change", "cuttable"),
    [
        (lambda backend: None, True),
        (_without_nfc, True),
        (_lowercase, False),
        (_other_pattern, False),
        (_whole_pattern_of_gpt2, False),
        (_prefix, False),
        (_greedy_token, False),
        (_dropout, False),
    ],
)
def test_only_tokenizers_of_this_kind_are_cut_for(backend, change, cuttable):
    changed = copy.deepcopy(backend)
    change(changed)
    assert can_cut(changed) == cuttable


def test_the_built_in_tokenizer_and_qwens_are_of_this_kind(tmp_path):
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX, Qwen2Tokenizer

    from qwen3llada.corpus.builtin.model import write_tokenizer

    assert PRETOKENIZE_REGEX == PATTERN
    assert can_cut(Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]).backend_tokenizer)
    write_tokenizer(tmp_path, ["some words to merge, some words"] * 9, bpe_tokens=260)
    assert can_cut(Tokenizer.from_file(str(tmp_path / "tokenizer.json")))
