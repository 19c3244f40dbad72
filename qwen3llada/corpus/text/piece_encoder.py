"""Token ids of texts with each distinct piece encoded once: a few times faster than the tokenizers library alone.

A text is cut where Qwen's pre-tokenizer ends a token regardless of the text on the other side. The ids of a piece are
cached, because most pieces are words that occur again. The result equals encoding the whole text.
"""

import json
import re
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

# Qwen's pre-tokenizer: contractions, words with one leading character, single digits, punctuation, line ends, spaces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MOST, LONGEST = 1 << 18, 32  # cached pieces, and characters of the longest one: at most about 80 MB

# Not whitespace under any definition, and no control or format character.
_SOLID = r"[^\x00-\x20\x7f-\xa0\xad\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]"
_ASCII = r"(?![^\x00-\x7f])"  # or the end
# Places where PATTERN ends a token and begins another without looking at the other side. NFC composition does not cross
# them: an ASCII character never composes with preceding text, nor a line end with following text.
_ENDS = (
    rf"(?= {_SOLID})",  # before the space before a word: no token contains a character followed by such a space
    rf"(?<=\n)(?=[ \t]*+{_SOLID})",  # after the last line end of a run of whitespace
    r"(?<=[A-Za-z])(?=[\x00-@\[-`{-\x7f])",  # between an ASCII letter and an ASCII character that is no letter
    rf"(?<=[0-9]){_ASCII}",  # after a digit, which is a token of its own
    r"\Z",
)
# The fast path: a word that ends at such a place, as most do. Otherwise the shortest text up to such a place.
_PIECE = re.compile(rf"[ -/:-@\[-`{{-~]?[A-Za-z]++{_ASCII}|(?s:.)+?(?:{'|'.join(_ENDS)})")


class PieceEncoder:
    """Encodes texts piece by piece. `backend`: a tokenizer of the tokenizers library that satisfies `can_cut`."""

    def __init__(self, backend: Any):
        self._backend = backend
        self._known: dict[str, bytes] = {}
        added = sorted(_added(json.loads(backend.to_str())), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, added))) if added else None

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        """Ids of each text as the bytes of an int32 array, without additions."""
        if len(self._known) > MOST:
            self._known.clear()
        cut = [[text] if self._added and self._added.search(text) else _PIECE.findall(text) for text in texts]
        new = list(set(chain.from_iterable(cut)).difference(self._known))
        self._known |= zip(new, encode(self._backend, new), strict=True)
        encoded = [b"".join(map(self._known.__getitem__, pieces)) for pieces in cut]
        for piece in new:
            if len(piece) > LONGEST:
                del self._known[piece]
        return encoded


def encode(backend: Any, texts: Sequence[str]) -> list[bytes]:
    """Same result as `PieceEncoder`, by the tokenizers library alone."""
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    return [array("i", encoding.ids).tobytes() for encoding in encodings]


def can_cut(backend: Any) -> bool:
    """Whether a tokenizer is of Qwen's kind: byte-level BPE after PATTERN, with at most NFC normalisation before.

    Its added tokens other than control tokens must match the text literally.
    """
    parts = json.loads(backend.to_str())
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = (parts["pre_tokenizer"] or {}).get("pretokenizers") or []
    known = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    return (
        known == [split, to_bytes]
        and parts["normalizer"] in (None, {"type": "NFC"})
        and parts["model"]["type"] == "BPE"
        and not parts["model"]["dropout"]
        and not any(token[key] for token in parts["added_tokens"] if not token["special"] for key in _TRICKY)
    )


_TRICKY = ("single_word", "lstrip", "rstrip", "normalized")  # properties that make a token depend on its neighbours


def _added(parts: dict[str, Any]) -> list[str]:
    """Added tokens that are found in any text. Special ones are not, because of `encode_special_tokens`."""
    return [token["content"] for token in parts["added_tokens"] if not token["special"]]
