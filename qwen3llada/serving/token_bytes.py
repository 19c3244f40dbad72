"""The bytes that a token stands for, which may be a part of a character."""

from functools import cache
from typing import Any


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes of a token: the true ones for a byte-level tokenizer, else those of its text."""
    if token not in tokenizer.added_tokens_decoder and _is_byte_level(tokenizer):
        word, table = tokenizer.convert_ids_to_tokens(token), byte_table()
        if word is not None and all(letter in table for letter in word):
            return bytes(table[letter] for letter in word)
    return str(tokenizer.decode([token])).encode()


@cache
def byte_table() -> dict[str, int]:
    """Letter of a byte-level vocabulary -> byte, as in GPT-2: printable bytes are themselves, the others follow 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _is_byte_level(tokenizer: Any) -> bool:
    from tokenizers import decoders

    return isinstance(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None), decoders.ByteLevel)
