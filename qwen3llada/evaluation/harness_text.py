"""Texts of lm-evaluation-harness as tokens, and back."""

import hashlib
from collections.abc import Callable, Sequence


def encode_pair(
    encode: Callable[[str], list[int]], bos: int | None, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Token ids of a context and of what follows it, cut where the context ends.

    Spaces at the context's end go to the continuation, as in lm-eval: most tokenizers join a space to the next word.
    `bos`: the token that every context begins with, or None.
    """
    kept = context.rstrip(" ")
    context, continuation = kept, context[len(kept) :] + continuation
    before, whole = encode(context), encode(context + continuation)
    start = [] if bos is None or before[:1] == [bos] else [bos]
    if whole[: len(before)] == before:
        return start + before, whole[len(before) :]
    return start + before, encode(continuation)  # a token would span both


def windows_of(tokens: list[int], length: int) -> list[tuple[list[int], list[int]]]:
    """(given, predicted) tokens of windows of `length` that predict each token once.

    Each window but the first is given the last token before it. None for a text without tokens.
    """
    starts = [0, *range(length, len(tokens), length - 1)] if tokens else []
    given = [tokens[start - 1 : start] if start else [] for start in starts]
    return [(g, tokens[start : start + length - len(g)]) for start, g in zip(starts, given, strict=True)]


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings that is in it."""
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text


def key_of(given: Sequence[int], tokens: Sequence[int]) -> int:
    """A number of 62 bits for a request, from its tokens alone."""
    named = f"{list(given)}{list(tokens)}".encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:8], "big") >> 2
