"""The bytes and places of tokens, with tokens that hold a part of a character."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.serving.replies import Replies
from qwen3llada.serving.token_bytes import byte_table, token_bytes


@pytest.fixture(scope="module")
def bytewise():
    """A byte-level tokenizer: a token per byte, one for " g", EOS and mask."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġg"]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("Ġ", "g")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", mask_token="<mask>")


def test_a_token_has_its_own_bytes(bytewise):
    said = " goat 😀 é\n\x00"
    tokens = bytewise(said)["input_ids"]
    assert [token_bytes(bytewise, token) for token in tokens[:2]] == [b" g", b"o"]
    assert b"".join(token_bytes(bytewise, token) for token in tokens) == said.encode()
    assert token_bytes(bytewise, bytewise.eos_token_id) == b"<eos>"
    assert sorted(byte_table().values()) == list(range(256))


def test_another_tokenizer_has_the_bytes_of_its_text(text):
    assert token_bytes(text.tokenizer, 5) == b"w5"


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_log_probabilities_of_half_characters(bytewise, kind):
    config = SimpleNamespace(mask_token_id=bytewise.mask_token_id, eos_token_id=bytewise.eos_token_id)
    text = TextModel(SimpleNamespace(config=config, generation_config=None), bytewise)
    tokens = [*bytewise(" gé!")["input_ids"], bytewise.eos_token_id]
    job = SimpleNamespace(progress=SimpleNamespace(tokens=tokens, log_probs=[-1.0] * len(tokens)))
    replies = Replies(text, kind, "m", "1", None)
    whole = replies._log_probs(job, 0, len(tokens))
    if kind == "chat":
        said = [bytes(entry["bytes"]) for entry in whole["content"]]
        assert said == [b" g", b"\xc3", b"\xa9", b"!", b"<eos>"]
    else:
        assert whole["text_offset"] == [0, 2, 2, 3, 4]
        parts = [replies._log_probs(job, i, i + 1)["text_offset"] for i in range(len(tokens))]
        assert [at for part in parts for at in part] == whole["text_offset"]
