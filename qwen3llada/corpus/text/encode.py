"""Pretraining text as token ids: documents ended by EOS, packed into sequences."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada.corpus.conversations.prompts import is_encodable
from qwen3llada.corpus.fetch.sources import TextData
from qwen3llada.corpus.files.ordered_map import ordered_map
from qwen3llada.corpus.text.documents import TextBlock, text_blocks
from qwen3llada.corpus.text.piece_encoder import PieceEncoder, can_cut, encode
from qwen3llada.corpus.text.same_text import hashes, text_hash
from qwen3llada.corpus.tokens.histogram import Histogram
from qwen3llada.corpus.tokens.packing import Packer, SequenceWriter
from qwen3llada.encodings import seeming_encoding
from qwen3llada.errors import InputError


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Documents of a block as concatenated token ids, with EOS after each document that ends in it."""

    tokens: np.ndarray  # [sum of lengths] int32
    lengths: np.ndarray  # [documents] int64
    continues: bool
    open_end: bool
    characters: int
    blank: int
    held_out: int  # documents skipped because they are held out


class TextEncoder:
    """Encodes blocks of documents. Text that looks like a special token is encoded as plain text.

    `heldout`: hashes (`same_text`) of documents to skip; blank ones are skipped as well. A document larger than a block
    is never compared.
    """

    def __init__(self, tokenizer: Any, heldout: frozenset[int] = frozenset()):
        self._heldout = heldout
        # A copy, because these settings would change the caller's tokenizer.
        backend = copy.deepcopy(tokenizer.backend_tokenizer)
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self._encode = PieceEncoder(backend) if can_cut(backend) else partial(encode, backend)
        eos = tokenizer.eos_token_id
        self._eos = b"" if eos is None else np.int32(eos).tobytes()

    def __call__(self, block: TextBlock) -> EncodedText:
        """The tokens of a block. Raises: InputError naming file and record of a text that is missing or not Unicode."""
        texts = block.decoded()
        whole = range(block.continues, len(texts) - block.open_end)  # documents that lie entirely in this block
        blank = {i for i in whole if not texts[i].strip()}
        held = {i for i in whole if i not in blank and text_hash(texts[i]) in self._heldout} if self._heldout else set()
        out = blank | held
        kept = [text for i, text in enumerate(texts) if i not in out] if out else texts
        try:
            ids = self._encode(kept)
        except (TypeError, UnicodeEncodeError):
            bad = next((i for i, text in enumerate(texts) if not is_encodable(text)), None)
            if bad is None:
                raise
            raise unencodable(block, bad, texts[bad]) from None
        closed = [document + self._eos for document in ids]
        if block.open_end:
            closed[-1] = ids[-1]
        lengths = np.fromiter(map(len, closed), np.int64, len(closed)) // np.dtype(np.int32).itemsize
        tokens = np.frombuffer(b"".join(closed), np.int32)
        facts = {"characters": sum(map(len, kept)), "blank": len(blank), "held_out": len(held)}
        return EncodedText(tokens, lengths, block.continues, block.open_end, **facts)


def unencodable(block: TextBlock, number: int, text: str) -> InputError:
    """The error for a text that UTF-8 cannot represent: bytes of another encoding, or a lone surrogate."""
    message = f"{block.file}: record {block.first + number} is not valid Unicode text"
    try:
        seems = seeming_encoding(text.encode(errors="surrogateescape"))
    except UnicodeEncodeError:  # a surrogate that does not stand for a byte
        return InputError(message)
    return InputError(f"{message}; it seems to be {seems}")


def document_hashes(folder: Path, params: TextData) -> frozenset[int]:
    """Hashes of the documents in `folder`, except blank ones and ones larger than a block."""
    found: set[int] = set()
    for block in text_blocks(folder, params.text_field, params.txt_unit):
        texts = block.decoded()
        found |= hashes(texts[block.continues : len(texts) - block.open_end])
    return frozenset(found)


def encode_blocks(
    raw: Path, tokenizer: Any, params: TextData, heldout: frozenset[int] = frozenset()
) -> Iterator[EncodedText]:
    """The text files in `raw`, in order, encoded by `params.num_proc` processes, without documents in `heldout`."""
    blocks = text_blocks(raw, params.text_field, params.txt_unit)
    return ordered_map(_encode, TextEncoder(tokenizer, heldout), blocks, params.num_proc)


def _encode(encoder: TextEncoder, block: TextBlock) -> EncodedText:
    return encoder(block)


def write_text_sequences(
    parts: Iterator[EncodedText], writer: SequenceWriter, params: TextData, max_length: int
) -> tuple[dict[str, int], dict[str, Histogram]]:
    """Write documents as sequences of at most `max_length` tokens. Returns counts, and the lengths of documents."""
    packer = Packer(max_length, pack=params.pack_to_max_length)
    documents = Histogram()
    characters = blank = held_out = open_length = 0  # open_length: of the document that continues in the next block
    for part in parts:
        writer.add(*packer.add(part.tokens, part.lengths, open_end=part.open_end))
        characters += part.characters
        blank += part.blank
        held_out += part.held_out
        lengths = part.lengths.copy()
        if part.continues:
            lengths[0] += open_length
        open_length = int(lengths[-1]) if part.open_end else 0
        documents.add(lengths[:-1] if part.open_end else lengths)
    rest = packer.close()
    dropped = len(rest) if params.remainder == "drop" else 0
    if len(rest) > dropped:
        writer.add(rest, np.array([len(rest)]))
    counts = {"documents": documents.count, "blank_documents": blank, "heldout_documents": held_out}
    counts["characters"] = characters
    counts |= {"tokens": documents.total, "longest_document": documents.longest, "dropped_tokens": dropped}
    return counts, {"document": documents}


def text_notes(counts: dict[str, Any]) -> list[str]:
    """Notes for the user about the `counts` of both splits: the column that was read, and what was left out."""
    notes = [f"the text of {split} is column {c['text_field']}" for split, c in counts.items() if c.get("text_field")]
    for name, what in (
        ("blank_shards", "shards without text skipped"),
        ("blank_documents", "blank documents left out"),
        ("heldout_documents", "documents left out because they are held out, too"),
    ):
        notes += [f"{c[name]:,} {what} ({split})" for split, c in counts.items() if c.get(name)]
    return notes
