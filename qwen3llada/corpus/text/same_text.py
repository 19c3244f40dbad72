"""When two prompts or documents count as the same: one definition for held-out data and for the leakage rule."""

import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

from qwen3llada.corpus.conversations.records import GPT, HUMAN, map_record, role_of


def folded(text: str) -> str:
    """The text with whitespace normalised and case folded, which do not distinguish texts."""
    return " ".join(text.split()).casefold()


def text_hash(text: str) -> int:
    """63-bit hash of the folded text: equal for texts that count as the same."""
    return exact_hash(folded(text))


def exact_hash(text: str) -> int:
    """63-bit hash of a text. A million texts collide with a probability below 1e-7."""
    data = text.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 1


def prompts(row: Any) -> list[str]:
    """The prompts of a record of any known shape: human turns followed by a gpt turn; [] if it is damaged."""
    turns = map_record(row)["conversations"] if isinstance(row, dict) else None
    if not isinstance(turns, list):
        return []
    pairs = itertools.pairwise(turns)
    return [str(human.get("value")) for human, gpt in pairs if (role_of(human), role_of(gpt)) == (HUMAN, GPT)]


def hashes(texts: Iterable[str]) -> frozenset[int]:
    """The hashes of the texts that are not blank."""
    return frozenset(text_hash(text) for text in texts if text.strip())
