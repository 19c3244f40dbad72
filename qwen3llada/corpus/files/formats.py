"""Readers of the individual formats. Each yields a file's records in blocks."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from qwen3llada.corpus.files.rows import (
    BLOCK_BYTES,
    COMPRESSION,
    Block,
    Row,
    file_format,
    iter_lines,
    open_stream,
    open_text,
)
from qwen3llada.errors import InputError

_NOT_SPACE = re.compile(r"[^ \t\r\n]")  # whitespace as defined by JSON


def read_lines(path: Path) -> Iterator[Block]:
    """JSON lines. Blank lines are skipped and not counted."""
    first = 0
    for lines in iter_lines(path):
        if filled := [line for line in lines if line.strip()]:
            yield Block(path, first, lines=filled)
            first += len(filled)


def read_json(path: Path) -> Iterator[Block]:
    """A JSON array of records, parsed while it is read. A file that starts with an object is read as JSON lines."""
    with open_stream(path) as stream:
        head = stream.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith(b"["):
        whole = _whole_object(path) if head.startswith(b"{") else None
        yield from [Block(path, 0, decoded=[Row(whole)])] if whole is not None else read_lines(path)
        return
    yield from _collect(path, _array_items(path))


def _collect(path: Path, rows: Iterable[tuple[Row, int]]) -> Iterator[Block]:
    """Group rows, which come with their sizes in characters, into blocks."""
    first, block, size = 0, [], 0
    for row, characters in rows:
        block.append(row)
        size += characters
        if size >= BLOCK_BYTES:
            yield Block(path, first, decoded=block)
            first, block, size = first + len(block), [], 0
    if block:
        yield Block(path, first, decoded=block)


def _whole_object(path: Path) -> Any | None:
    """The content of a file that is one object over several lines; None if its first line is complete JSON."""
    with open_stream(path) as stream:
        text = open_text(stream)
        first = next((line for line in text if line.strip()), "")
        try:
            json.loads(first)
        except json.JSONDecodeError:
            try:
                return json.loads(first + text.read())
            except json.JSONDecodeError:
                return None
    return None


def _array_items(path: Path) -> Iterator[tuple[Row, int]]:
    """Items of the JSON array in `path` with their lengths in characters. After damage, the rest is one row."""
    with open_stream(path) as stream:
        text = _Lookahead(open_text(stream))
        try:
            text.take("[")
            more = text.peek() != "]"
            if not more:
                text.take("]")
            while more:
                start = text.position
                value = text.value()
                yield Row(value), text.position - start
                more = text.take(",]") == ","
            if text.peek():
                raise json.JSONDecodeError("a file is one array, and this follows it", text.buffer, text.position)
        except (RecursionError, ValueError) as error:  # includes JSONDecodeError
            rest = text.buffer[text.position :]
            yield Row(None, f"not JSON from here on: {getattr(error, 'msg', error)}", rest), len(rest)


class _Lookahead:
    """A text that is decoded while it is read: a buffer, a position in it, and the underlying file."""

    def __init__(self, text: io.TextIOWrapper):
        self.text, self.buffer, self.position = text, "", 0
        self.decoder = json.JSONDecoder()

    def more(self) -> bool:
        """Read at least as much as is buffered, so that repeated decoding of a long item costs at most twice."""
        self.buffer = self.buffer[self.position :]
        self.position = 0
        read = self.text.read(max(BLOCK_BYTES, len(self.buffer)))
        self.buffer += read
        return bool(read)

    def peek(self) -> str:
        """Move to the next character that is no whitespace and return it; "" at the end."""
        while True:
            found = _NOT_SPACE.search(self.buffer, self.position)
            if found:
                self.position = found.start()
                return found.group()
            self.position = len(self.buffer)
            if not self.more():
                return ""

    def take(self, allowed: str) -> str:
        """Consume and return the next character, which must be one of `allowed`."""
        found = self.peek()
        if not found or found not in allowed:
            raise json.JSONDecodeError(f"expected {' or '.join(allowed)}", self.buffer, self.position)
        self.position += 1
        return found

    def value(self) -> Any:
        """Decode and consume the next value."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError:
                if not self.more():
                    raise
                continue
            if end < len(self.buffer):
                self.position = end
                return value
            if not self.more():  # a number at the end of the buffer might continue
                self.position = len(self.buffer)
                return value


def read_csv(path: Path) -> Iterator[Block]:
    """Records of comma- or tab-separated values under a header. All values are text."""
    csv.field_size_limit(2**31 - 1)  # Python's default limit of 128 KiB is less than some documents
    with open_stream(path) as stream:
        reader = csv.reader(open_text(stream), delimiter="\t" if file_format(path) == "tsv" else ",", strict=True)
        header = next(reader, None)
        if header is None:
            raise InputError(f"{path}: empty; the first line must name the columns")
        _require_once(path, header)
        yield from _collect(path, _csv_rows(reader, header))


def _csv_rows(reader: Any, header: list[str]) -> Iterator[tuple[Row, int]]:
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(None, f"not CSV: {error} before line {reader.line_num + 1}", ""), 0
            continue
        size = sum(map(len, values))
        if len(values) == len(header):
            yield Row(dict(zip(header, values, strict=True))), size
        elif values:
            reason = f"{len(values)} values under a header of {len(header)} columns"
            yield Row(None, reason, json.dumps(values, ensure_ascii=False)), size


def read_parquet(path: Path, columns: Iterable[str] | None = None) -> Iterator[Block]:
    """Rows of a Parquet file, optionally only `columns`."""
    import pyarrow.parquet as pq

    compressed = path.suffix.lower() in COMPRESSION
    source = pa.BufferReader(open_stream(path).read()) if compressed else str(path)
    with pq.ParquetFile(source, memory_map=True, pre_buffer=False) as file:
        metadata = file.metadata
        size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        rows = _rows_a_block(size, metadata.num_rows)
        _require(path, file.schema_arrow, columns)
        yield from _number(path, file.iter_batches(rows, columns=columns and list(columns), use_threads=False))


def read_arrow(path: Path, columns: Iterable[str] | None = None) -> Iterator[Block]:
    """Rows of an Arrow file or stream (`datasets` writes streams), optionally only `columns`."""
    compressed = path.suffix.lower() in COMPRESSION
    with pa.BufferReader(open_stream(path).read()) if compressed else pa.memory_map(str(path)) as source:
        yield from _number(path, _arrow_batches(path, source, columns))


def _require_once(path: Path, names: Sequence[str]) -> None:
    """A record would have the last one's value alone."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path}: several columns {', '.join(map(repr, twice))}; each column must have its own name")


def _require(path: Path, schema: pa.Schema, columns: Iterable[str] | None) -> None:
    _require_once(path, schema.names)
    if missing := [name for name in columns or () if name not in schema.names]:
        raise InputError(f"{path}: no column {', '.join(map(repr, missing))}; it has {', '.join(schema.names)}")


def _arrow_batches(path: Path, source: pa.NativeFile, columns: Iterable[str] | None) -> Iterator[pa.RecordBatch]:
    magic = source.read(6)
    source.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(source)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(source))
    for batch in batches:
        _require(path, batch.schema, columns)
        kept = batch.select(list(columns)) if columns else batch
        rows = _rows_a_block(kept.nbytes, kept.num_rows)
        yield from (kept.slice(start, rows) for start in range(0, kept.num_rows, rows))


def _number(path: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[Block]:
    first = 0
    for batch in batches:
        if batch.num_rows:
            yield Block(path, first, batch=batch)
            first += batch.num_rows


def _rows_a_block(size: int, rows: int) -> int:
    """Rows per block, if `rows` rows have `size` bytes together."""
    return max(1, rows * BLOCK_BYTES // max(1, size))
