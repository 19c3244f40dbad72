"""Token ids on disk: documents cut into sequences, and sequences in one Arrow file."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from qwen3llada.artifacts import new_file

TOKENS_FILE = "tokens.arrow"
MANIFEST = "manifest.json"  # in the same folder
#: Tokens per record batch of the file, and so the memory for writing: 4 MiB.
BATCH_TOKENS = 1 << 20


class Packer:
    """Cuts a stream of documents into sequences of at most `max_length` tokens.

    With `pack` documents follow each other, and every sequence but the last has `max_length` tokens. Without, each
    document starts a new sequence, and the next sequence continues what exceeds `max_length`.
    """

    def __init__(self, max_length: int, *, pack: bool = True):
        self.max_length, self.pack = max_length, pack
        self._rest = np.empty(0, np.int32)

    def add(self, tokens: np.ndarray, lengths: np.ndarray, *, open_end: bool) -> tuple[np.ndarray, np.ndarray]:
        """Sequences completed by these documents: concatenated tokens, and lengths.

        Args:
            tokens: [sum of lengths] int32, concatenated documents. The first continues a document left open before.
            lengths: [documents] int64.
            open_end: the next call continues the last document.
        """
        if self._rest.size:
            tokens = np.concatenate([self._rest, tokens])
        if self.pack:
            whole = len(tokens) // self.max_length
            cuts = np.full(whole, self.max_length, np.int64)
        else:
            lengths = lengths.copy()
            lengths[:1] += self._rest.size
            pieces = -(-lengths // self.max_length)
            cuts = np.full(pieces.sum(), self.max_length, np.int64)
            filled = pieces > 0
            cuts[np.cumsum(pieces)[filled] - 1] = (lengths - (pieces - 1) * self.max_length)[filled]
            if open_end and cuts.size and cuts[-1] < self.max_length:
                cuts = cuts[:-1]
        used = int(cuts.sum())
        self._rest = tokens[used:].copy()
        return tokens[:used], cuts

    def close(self) -> np.ndarray:
        """The remaining tokens, which do not fill a sequence."""
        rest, self._rest = self._rest, np.empty(0, np.int32)
        return rest


class SequenceWriter:
    """Appends sequences to an Arrow file: a list of token ids each and, for prompts and answers, the prompt's length.

    The content of the file and its batch boundaries depend only on the sequences.
    """

    def __init__(self, path: Path, *, prompts: bool = False):
        fields = [pa.field("tokens", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False)]
        if prompts:
            fields.append(pa.field("prompt_length", pa.int32(), nullable=False))
        self.schema, self.prompts = pa.schema(fields), prompts
        self._writer = pa.ipc.new_file(str(path), self.schema)
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._waiting = 0
        self._digest = hashlib.sha256()
        self.sequences = self.tokens = 0

    def add(self, tokens: np.ndarray, lengths: np.ndarray, prompt_lengths: np.ndarray | None = None) -> None:
        """Append sequences: tokens [sum of lengths] int32, lengths [n] and, for prompts, prompt lengths [n]."""
        if prompt_lengths is None:
            prompt_lengths = np.zeros(len(lengths), np.int32)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        first = 0
        while first < len(lengths):  # a batch ends with the sequence that fills it
            last = int(np.searchsorted(starts, starts[first] + BATCH_TOKENS - self._waiting))
            last = min(max(last, first + 1), len(lengths))
            part = tokens[starts[first] : starts[last]], lengths[first:last], prompt_lengths[first:last]
            self._pending.append(part)
            self._waiting += len(part[0])
            if self._waiting >= BATCH_TOKENS:
                self._flush()
            first = last

    def close(self) -> str:
        """Flush the file. Returns the SHA-256 of all token ids, lengths and prompt lengths."""
        self._flush()
        self._writer.close()
        return self._digest.hexdigest()

    def _flush(self) -> None:
        if not self._pending:
            return
        tokens, lengths, prompt_lengths = (np.concatenate(column) for column in zip(*self._pending, strict=True))
        self._pending, self._waiting = [], 0
        tokens, prompt_lengths = np.ascontiguousarray(tokens, np.int32), prompt_lengths.astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        for part in (tokens, offsets, prompt_lengths):
            self._digest.update(part.tobytes())
        kind = self.schema.field("tokens").type
        lists = pa.ListArray.from_arrays(_int32(offsets), _int32(tokens), type=kind)
        columns = [lists, _int32(prompt_lengths)] if self.prompts else [lists]
        self._writer.write_batch(pa.record_batch(columns, schema=self.schema))
        self.sequences += len(lengths)
        self.tokens += len(tokens)


def _int32(values: np.ndarray) -> pa.Array:
    """An Arrow array without a copy. (`pa.array` would import pandas first, which takes a second.)"""
    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])


@contextmanager
def new_sequences(folder: Path, *, prompts: bool = False) -> Iterator[SequenceWriter]:
    """A writer for `folder`'s token file. The file appears only if the context ends without an error."""
    with new_file(folder / TOKENS_FILE) as path:
        yield SequenceWriter(path, prompts=prompts)
