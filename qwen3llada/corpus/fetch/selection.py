"""Selection of rows from files, and the choice of held-out rows."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3llada.corpus.fetch.slices import Slice
from qwen3llada.corpus.files.reading import read_blocks
from qwen3llada.corpus.files.rows import COMPRESSION, Block, Row, file_format
from qwen3llada.corpus.text.documents import TxtUnit, txt_blocks
from qwen3llada.corpus.text.same_text import folded, text_hash
from qwen3llada.errors import InputError


@dataclass(frozen=True, slots=True)
class Files:
    """Files of one split in order, and the slice of their rows to take."""

    paths: list[Path]
    part: Slice

    def wanted(self, selection: "Selection") -> range | None:
        """Row numbers of the slice; None if it is the whole split."""
        return None if self.part.whole else self.part.rows(sum(_count(path, selection) for path in self.paths))

    def places(self, selection: "Selection") -> dict[Path, range]:
        """For each file (resolved path), the numbers of its rows that are in the slice."""
        counts = [_count(path, selection) for path in self.paths]
        wanted = self.part.rows(sum(counts))
        found, start = {}, 0
        for path, count in zip(self.paths, counts, strict=True):
            first, last = _both(range(start, start + count), wanted)
            found[path.resolve()] = range(max(0, first - start), max(0, last - start))
            start += count
        return found

    def rows(self, selection: "Selection") -> "Iterator[tuple[Path, Row]]":
        """The rows of the slice, with their files."""
        wanted, number = self.wanted(selection), 0
        for path in self.paths:
            for block in row_blocks(path, selection):
                for row in block.rows():
                    if wanted is None or number in wanted:
                        yield path, row
                    number += 1


@dataclass(frozen=True)
class Selection:
    """Columns to keep, and the rule for holding rows out.

    `key` returns the text by which a row is held out; equal texts (`same_text`) are treated alike. `prompts`, for
    conversations, returns all prompts of a row; the first is the key. `txt_unit`: what a row of a .txt file is.
    """

    columns: list[str] = field(default_factory=list)
    heldout_fraction: float = 0.0
    key: Callable[[Path, Any], str] = lambda path, value: json.dumps(value, sort_keys=True, default=str)
    txt_unit: TxtUnit = "file"
    prompts: Callable[[Any], list[str]] | None = None


def row_blocks(path: Path, selection: Selection) -> Iterator[Block]:
    """The rows of a file. Rows of a .txt file are objects with a `text`."""
    if file_format(path) != "txt":
        yield from read_blocks(path)
        return
    if selection.txt_unit == "file":  # pieces of one document
        texts = ["".join(text for block in txt_blocks(path, "file") for text in block.decoded())]
        yield Block(path, 0, decoded=[Row({"text": text}) for text in texts])
        return
    for block in txt_blocks(path, selection.txt_unit):
        yield Block(path, block.first, decoded=[Row({"text": text}) for text in block.decoded()])


def share(row: Row, path: Path, selection: Selection) -> float:
    """A number in [0, 1) that depends only on the row's key. The row is held out if it is below the fraction."""
    key = folded(selection.key(path, row.value) if row.error is None else row.raw or "")
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def heldout_openings(sources: Sequence[Files], selection: Selection) -> frozenset[int]:
    """Hashes of prompts that open a held-out conversation. No training conversation may contain one of them.

    Empty for texts, whose key is the whole text.
    """
    if selection.prompts is None or not selection.heldout_fraction:
        return frozenset()
    found = set()
    for files in sources:
        for path, row in files.rows(selection):
            asked = selection.prompts(row.value)
            if asked and share(row, path, selection) < selection.heldout_fraction:
                found.add(text_hash(asked[0]))
    return frozenset(found)


def asks_heldout(row: Row, selection: Selection, openings: frozenset[int]) -> bool:
    """Whether a later prompt of a conversation opens a held-out one. (A first that does is held out itself.)"""
    if not openings or selection.prompts is None:
        return False
    return any(text_hash(prompt) in openings for prompt in selection.prompts(row.value)[1:])


def refuse_overlap(train: Sequence[Files], heldout: Sequence[Files], selection: Selection) -> None:
    """Raises: InputError if a row of a file is in both `train` and `heldout`. Opens only files that are in both."""
    for ours in train:
        for theirs in heldout:
            shared = {path.resolve() for path in ours.paths} & {path.resolve() for path in theirs.paths}
            if shared and (rows := _shared_rows(ours, theirs, shared, selection)):
                name = sorted(path.name for path in theirs.paths if path.resolve() in shared)[0]
                raise InputError(
                    f"{name}: {rows} of its rows would be trained on and held out: {ours.part} and {theirs.part} "
                    "overlap; choose splits, or slices of them, that do not"
                )


def _shared_rows(ours: Files, theirs: Files, shared: set[Path], selection: Selection) -> int:
    places = [files.places(selection) for files in (ours, theirs)]
    return sum(len(range(*_both(places[0][path], places[1][path]))) for path in shared)


def _both(one: range, other: range) -> tuple[int, int]:
    return max(one.start, other.start), min(one.stop, other.stop)


def _count(path: Path, selection: Selection) -> int:
    if file_format(path) == "parquet" and path.suffix not in COMPRESSION:
        import pyarrow.parquet as pq

        return pq.read_metadata(path).num_rows
    return sum(map(len, row_blocks(path, selection)))
