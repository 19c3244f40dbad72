"""Prompts of a request: texts or token ids, and how long a text may be before it is encoded."""

import json
from collections.abc import Sequence
from typing import Any

from qwen3llada.corpus.conversations.prompts import encode_texts
from qwen3llada.errors import InputError
from qwen3llada.sampling.dialogue.text_model import TextModel

NFC_SHRINKS = 4  # code points of a canonical decomposition at most, so of what NFC makes one of
KEEPING = {"ByteLevel", "Digits", "Split"}  # pre-tokenizers that drop no character, unless a Split removes its matches


def listed(prompt: Any) -> list[str] | list[list[int]]:
    """The prompts of a completion, as texts or as token ids. Raises InputError."""
    parts = prompt if isinstance(prompt, list) else [prompt]
    if parts and all(isinstance(part, str) for part in parts):
        return parts
    rows = parts if parts and all(isinstance(part, list) for part in parts) else [parts]
    if not all(rows) or not all(isinstance(i, int) and not isinstance(i, bool) for row in rows for i in row):
        raise InputError(f"prompt={prompt!r:.80} must be a text, a list of texts, token ids, or a list of these")
    return rows


def encoded(text: TextModel, prompts: list[str] | list[list[int]]) -> list[list[int]]:
    """Token ids of prompts from `listed`."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not texts:
        return [prompt for prompt in prompts if isinstance(prompt, list)]
    bos = [] if text.tokenizer.bos_token_id is None else [text.tokenizer.bos_token_id]
    return [bos + ids for ids in encode_texts(text.tokenizer, texts)]


def check_characters(texts: Sequence[Any], most: int | None, positions: int) -> None:
    """Raises InputError for a text of more than `most` characters: it has more than `positions` tokens."""
    for number, text in enumerate(texts):
        if most is not None and len(text) > most:
            raise InputError(
                f"prompts[{number}] of {len(text):,} characters must have at most {most:,}: longer ones exceed the"
                f" model's max_position_embeddings={positions}"
            )


def most_characters(text: TextModel) -> int | None:
    """Characters that the model's positions can hold at most; None: the tokenizer gives no bound.

    A byte-level BPE turns each byte into a part of some token, so a text has at least its length divided by the longest
    token's. NFC may shorten the text before.
    """
    backend = getattr(text.tokenizer, "backend_tokenizer", None)
    if backend is None or not _keeps_all(backend):
        return None
    if any(token.lstrip or token.rstrip for token in text.tokenizer.added_tokens_decoder.values()):
        return None  # such a token takes white space of any length with it
    shrinks = 1 if backend.normalizer is None else NFC_SHRINKS
    longest = max(map(len, text.tokenizer.get_vocab()))
    return int(text.model.config.max_position_embeddings * longest * shrinks)


def _keeps_all(backend: Any) -> bool:
    """Whether a fast tokenizer encodes each byte of a text, normalized by NFC at most."""
    from tokenizers import models, normalizers, pre_tokenizers

    if not isinstance(backend.normalizer, normalizers.NFC | None) or not isinstance(backend.model, models.BPE):
        return False
    if backend.pre_tokenizer is None:
        return False
    state = json.loads(backend.pre_tokenizer.__getstate__())
    steps = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    kept = all(step["type"] in KEEPING and step.get("behavior") != "Removed" for step in steps)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return kept and steps[-1]["type"] == "ByteLevel" and all(backend.token_to_id(byte) is not None for byte in alphabet)
