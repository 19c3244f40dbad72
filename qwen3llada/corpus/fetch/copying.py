"""Files on their way into data/raw: copied as they are or, where only some rows are wanted, row by row."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from qwen3llada.corpus.fetch.selection import Files, Selection, asks_heldout, heldout_openings, row_blocks, share
from qwen3llada.corpus.files.rows import COMPRESSION, Block, file_format
from qwen3llada.errors import InputError

COPY_BYTES = 1 << 20


def copy_file(source: Path, destination: Path) -> dict[str, Any]:
    """Copy a file; its size in bytes and its SHA-256."""
    digest, size = hashlib.sha256(), 0
    destination.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as read, open(destination, "wb") as write:
        while data := read.read(COPY_BYTES):
            digest.update(data)
            size += write.write(data)
    return {"bytes": size, "sha256": digest.hexdigest()}


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def land(sources: list[Files], train: Path, heldout: Path | None, selection: Selection) -> int:
    """Put the rows of `sources` into the folder `train`, or into `heldout` those that a `heldout_fraction` holds out.

    Files of which every row and column is wanted are copied byte by byte, so that damage stays where validation finds
    it. Else JSON lines stay as they are, columnar files become parquet and all others JSON lines.
    Returns: how many conversations were left out, because a later prompt of theirs opens a held-out one.
    Raises: InputError if a folder ends without a row, or a column is missing.
    """
    whole = not selection.columns and not selection.heldout_fraction
    rows = {train: 0} | ({heldout: 0} if heldout and selection.heldout_fraction else {})
    openings, dropped = heldout_openings(sources, selection), 0
    number, several = 0, sum(len(files.paths) for files in sources) > 1
    for files in sources:
        wanted = files.wanted(selection)
        position = 0
        for path in files.paths:
            name = f"{number:05d}-{path.name}" if several else path.name
            number += 1
            if whole and wanted is None:
                copy_file(path, train / name)
                rows[train] += 1
                continue
            with ExitStack() as stack:
                sinks = {folder: stack.enter_context(_Sink(folder, name)) for folder in rows}
                for block in row_blocks(path, selection):
                    sides = list(_sides(block, position, wanted, selection, train, heldout))
                    if openings:
                        asked = [asks_heldout(row, selection, openings) for row in block.rows()]
                        clash = [side == train and again for side, again in zip(sides, asked, strict=True)]
                        sides = [None if again else side for side, again in zip(sides, clash, strict=True)]
                        dropped += sum(clash)
                    position += len(block)
                    for folder, sink in sinks.items():
                        rows[folder] += sink.write(block, [side == folder for side in sides], selection.columns)
    for folder, count in rows.items():
        if not count:
            what = f"heldout_fraction={selection.heldout_fraction}" if len(rows) > 1 else "split"
            raise InputError(
                f"{sources[0].paths[0]}: no row for {folder.name} is left by {what}{unit_hint(sources, selection)}"
            )
    return dropped


def unit_hint(sources: Sequence[Files], selection: Selection) -> str:
    """For an error about too few rows: that a .txt file is one row, if there are any and they are."""
    texts = any(file_format(path) == "txt" for files in sources for path in files.paths)
    if not texts or selection.txt_unit != "file":
        return ""
    return "; a .txt file is one document with txt_unit: file, and many with txt_unit: paragraph | line"


def _sides(
    block: Block, position: int, wanted: range | None, selection: Selection, train: Path, heldout: Path | None
) -> Iterator[Path | None]:
    """For each row of a block, the folder that it goes to; None if it is not wanted."""
    rows = block.rows() if selection.heldout_fraction else [None] * len(block)
    for number, row in enumerate(rows, start=position):
        if wanted is not None and number not in wanted:
            yield None
        elif row is not None and share(row, block.file, selection) < selection.heldout_fraction:
            yield heldout
        else:
            yield train


class _Sink:
    """The file that one folder gets for one source file: nothing until a row comes, then JSON lines or parquet."""

    def __init__(self, folder: Path, name: str):
        for suffix in (*COMPRESSION, *(f".{known}" for known in ("jsonl", "ndjson", "json", "csv", "tsv", "txt"))):
            name = name.removesuffix(suffix)
        self.folder, self.stem = folder, name.removesuffix(".parquet").removesuffix(".arrow")
        self._lines: Any = None
        self._table: Any = None

    def __enter__(self) -> "_Sink":
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._lines, self._table):
            if file is not None:
                file.close()

    def write(self, block: Block, keep: list[bool], columns: list[str]) -> int:
        """Append the rows of `block` that are to be kept; their number."""
        if not any(keep):
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if block.batch is not None:
            import pyarrow.parquet as pq

            batch = _select(block, columns).filter(pa.array(keep))
            if self._table is None:
                self._table = pq.ParquetWriter(self.folder / f"{self.stem}.parquet", batch.schema)
            self._table.write_batch(batch)
            return batch.num_rows
        if self._lines is None:
            self._lines = open(self.folder / f"{self.stem}.jsonl", "wb")  # noqa: SIM115 - closed by __exit__
        lines = [line for line, kept in zip(json_lines(block, columns), keep, strict=True) if kept]
        self._lines.writelines(line + b"\n" for line in lines)
        return len(lines)


def _select(block: Block, columns: list[str]) -> pa.RecordBatch:
    assert block.batch is not None
    if missing := [name for name in columns if name not in block.batch.schema.names]:
        raise InputError(f"{block.file}: no columns {missing}; it has {', '.join(block.batch.schema.names)}")
    return block.batch.select(columns) if columns else block.batch


def json_lines(block: Block, columns: list[str]) -> list[bytes]:
    """The rows as lines of JSON; lines of JSON, also damaged ones, stay as they are.

    Raises: InputError for a damaged record of another format, which no line can carry.
    """
    if block.lines is not None and not columns:
        return block.lines
    lines = []
    for offset, row in enumerate(block.rows()):
        if row.error is not None:
            if block.lines is None:
                raise InputError(f"{block.file}: record {block.first + offset}: {row.error}")
            lines.append(block.lines[offset])
            continue
        value = row.value
        if columns and isinstance(value, dict):
            if missing := [name for name in columns if name not in value]:
                raise InputError(
                    f"{block.file}: record {block.first + offset}: no columns {missing}; it has {[*value]}"
                )
            value = {name: value[name] for name in columns}
        lines.append(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
    return lines
