"""The check that data and a model's tokenizer belong together."""

import json

import pytest

from qwen3llada.corpus.builtin.model import write_tokenizer
from qwen3llada.corpus.conversations.prompts import encode_prompt, encode_texts
from qwen3llada.corpus.fetch.sources import ConversationData
from qwen3llada.corpus.tokens.tokenize import tokenize_conversations
from qwen3llada.corpus.tokens.tokenizer import check_data, identity, load_tokenizer, template_identity
from qwen3llada.modeling.mask_token import give_mask_token

TEXTS = ["the quick brown fox jumps over the lazy dog", "hello world " * 3]
BEYOND_ASCII = [*TEXTS, "<think>é</think> <|mask|> 12 <|im_end|>\n\n x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of Qwen's kind: 270 BPE tokens, then special and markup tokens, no mask; 296 in total."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, TEXTS, bpe_tokens=270)
    return folder


@pytest.fixture
def original(folder):
    return load_tokenizer(folder)


def manifest(folder, values):
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(values))
    return folder


def stored_again(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize("mask_token", ["auto", 310, 265, 270 + 20], ids=["added", "with fillers", "text", "markup"])
@pytest.mark.parametrize("template", ["plain", "chat"])
def test_conversion_changes_no_text_and_no_prompt(folder, original, tmp_path, mask_token, template):
    """The mask token may be new, a distant row, an ordinary text token, or one that is found in any text."""
    data = manifest(tmp_path / "data", identity(original) | template_identity(original, template))
    converted = load_tokenizer(folder)
    give_mask_token(converted, mask_token, vocab_size=320)
    converted = stored_again(converted, tmp_path / "converted")
    assert converted.mask_token_id == (296 if mask_token == "auto" else mask_token)
    check_data(data, converted, template)
    assert encode_texts(original, BEYOND_ASCII) == encode_texts(converted, BEYOND_ASCII)
    assert encode_prompt(original, template, "Who?") == encode_prompt(converted, template, "Who?")


def other_vocabulary(tmp_path, original):
    write_tokenizer(tmp_path / "other", [*TEXTS, "vexed zebras buzz " * 9], bpe_tokens=270)
    return load_tokenizer(tmp_path / "other")


def added_token(tmp_path, original):
    original.add_tokens(["fox"])
    return stored_again(original, tmp_path / "other")


def with_bos(tmp_path, original):
    original.bos_token = "<|im_start|>"
    return stored_again(original, tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_vocabulary, "the vocabulary or its rules differ"),
        (added_token, "the added tokens fox differ"),
        (with_bos, "the vocabulary or its rules differ"),
    ],
)
def test_another_tokenizer_is_refused(tmp_path, folder, change, words):
    original = load_tokenizer(folder)
    data = manifest(tmp_path / "data", identity(original) | {"template": None})
    other = change(tmp_path, load_tokenizer(folder))
    with pytest.raises(
        ValueError, match=f"{data}: was made with another tokenizer than that of the model .*other: {words}"
    ):
        check_data(data, other, "plain")


def test_another_template_is_refused(tmp_path, original):
    data = manifest(tmp_path / "data", identity(original) | template_identity(original, "chat"))
    check_data(data, original, "chat")
    with pytest.raises(ValueError, match="its prompts have template=chat, the model's have plain"):
        check_data(data, original, "plain")
    original.chat_template += " "
    with pytest.raises(ValueError, match="was made with another chat template than that of the model"):
        check_data(data, original, "chat")
    plain = manifest(tmp_path / "plain", identity(original) | template_identity(original, "plain"))
    original.chat_template = None
    check_data(plain, original, "plain")  # plain text is not affected by the tokenizer's chat template


def test_text_has_no_template(tmp_path, original):
    data = manifest(tmp_path / "data", identity(original) | {"template": None})
    check_data(data, original, "plain")
    check_data(data, original, "chat")


@pytest.mark.parametrize("values", [None, {"tokenizer_sha256": "0"}])
def test_data_that_do_not_say_are_refused(tmp_path, original, values):
    data = manifest(tmp_path / "data", values or {})
    if values is None:
        (data / "manifest.json").unlink()
    message = (
        "no such file; tokenize_pack writes it" if values is None else "does not say which .* run tokenize_pack again"
    )
    with pytest.raises(ValueError, match=f"manifest.json: {message}"):
        check_data(data, original, "plain")


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_tokenized_conversations_say_what_they_were_made_with(tmp_path, original, template):
    (tmp_path / "raw").mkdir()
    turns = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "The fox."}]
    (tmp_path / "raw/a.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
    params = ConversationData(name="corpus", heldout_fraction=0.1, num_proc=1, template=template)
    written = tokenize_conversations(tmp_path / "raw", tmp_path / "out", original, params, max_length=64)
    assert written["template"] == template
    check_data(tmp_path / "out", original, template)
