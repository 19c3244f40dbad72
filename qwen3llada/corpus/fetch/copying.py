"""Copying of files to data/raw: whole, or row by row if only some rows are wanted."""

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
    """Copy a file. Returns its size in bytes and its SHA-256."""
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
    """Put the rows of `sources` into the folder `train`; rows held out by `heldout_fraction` go to `heldout`.

    Files of which all rows and columns are wanted are copied byte by byte, so that damage is left for validation to
    find. Otherwise JSON lines are kept as they are, columnar files become Parquet and all others JSON lines.
    Returns: number of conversations left out because one of their later prompts opens a held-out conversation.
    Raises: InputError if a folder gets no row, or a column is missing.
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
    _check_rows(rows, sources, selection)
    return dropped


def _check_rows(rows: dict[Path, int], sources: list[Files], selection: Selection) -> None:
    """Raises InputError if a folder got no row."""
    for folder, count in rows.items():
        if not count:
            what = f"heldout_fraction={selection.heldout_fraction}" if len(rows) > 1 else "split"
            raise InputError(
                f"{sources[0].paths[0]}: no row for {folder.name} is left by {what}{unit_hint(sources, selection)}"
            )


def unit_hint(sources: Sequence[Files], selection: Selection) -> str:
    """Hint for an error about too few rows: a .txt file is a single row by default. "" if there is none."""
    texts = any(file_format(path) == "txt" for files in sources for path in files.paths)
    if not texts or selection.txt_unit != "file":
        return ""
    return "; a .txt file is one document with txt_unit: file, and many with txt_unit: paragraph | line"


def _sides(
    block: Block, position: int, wanted: range | None, selection: Selection, train: Path, heldout: Path | None
) -> Iterator[Path | None]:
    """The folder that each row of a block goes to; None if the row is not wanted."""
    rows = block.rows() if selection.heldout_fraction else [None] * len(block)
    for number, row in enumerate(rows, start=position):
        if wanted is not None and number not in wanted:
            yield None
        elif row is not None and share(row, block.file, selection) < selection.heldout_fraction:
            yield heldout
        else:
            yield train


class _Sink:
    """Output file of one folder for one source file, created with its first row: JSON lines or Parquet."""

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
        """Append the rows of `block` selected by `keep`. Returns their number."""
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
    """The rows as JSON lines. Input that is JSON lines, even damaged ones, is returned unchanged.

    Raises: InputError for a damaged record of another format, which JSON cannot represent.
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
