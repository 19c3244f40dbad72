"""Which rows of which files are wanted, and which of them are held out."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3llada.corpus.blocks import COMPRESSION, Block, Row, file_format
from qwen3llada.corpus.reading import read_blocks
from qwen3llada.corpus.splits import Slice
from qwen3llada.corpus.text import TxtUnit, txt_blocks


@dataclass(frozen=True, slots=True)
class Files:
    """Files of one split in their order, and the slice that is taken of their rows."""

    paths: list[Path]
    part: Slice

    def wanted(self, selection: "Selection") -> range | None:
        """Numbers of the rows of the slice; None if it is the whole split."""
        return None if self.part.whole else self.part.rows(sum(_count(path, selection) for path in self.paths))


@dataclass(frozen=True)
class Selection:
    """Which columns are kept, and how rows are held out.

    `key` gives what a row is held out by; equal keys go the same way. `txt_unit`: what a row of a .txt file is.
    """

    columns: list[str] = field(default_factory=list)
    heldout_fraction: float = 0.0
    key: Callable[[Path, Any], str] = lambda path, value: json.dumps(value, sort_keys=True, default=str)
    txt_unit: TxtUnit = "file"


def row_blocks(path: Path, selection: Selection) -> Iterator[Block]:
    """The rows of a file; those of a .txt file are objects with a `text`."""
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
    """A number in [0, 1) that depends on the row's key alone."""
    key = selection.key(path, row.value) if row.error is None else row.raw or ""
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _count(path: Path, selection: Selection) -> int:
    if file_format(path) == "parquet" and path.suffix not in COMPRESSION:
        import pyarrow.parquet as pq

        return pq.read_metadata(path).num_rows
    return sum(map(len, row_blocks(path, selection)))
