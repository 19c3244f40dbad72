"""Fixtures of the corpus tests."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Qwen's chat layout, written here so that tests can spell out the expected text.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(bos=False, eos=True):
    """One token per byte, so that ids can be decoded without the code under test."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>", "<s>"]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    named = {"mask_token": "<|mask|>"}
    named |= {"eos_token": "<|endoftext|>"} if eos else {}
    named |= {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **named)


@pytest.fixture(scope="session")
def make_tokenizer():
    """A function that makes a tokenizer with one token per byte, with or without BOS and EOS."""
    return byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer with one token per byte, with EOS and without BOS, like Qwen's."""
    return byte_tokenizer()
