"""The documents of a text corpus, in blocks that a worker process can decode by itself."""

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from qwen3llada.corpus.blocks import BLOCK_BYTES, Block, file_format, open_stream
from qwen3llada.corpus.reading import data_files, read_blocks
from qwen3llada.errors import InputError

TxtUnit = Literal["file", "paragraph", "line"]

AUTO = "auto"
#: Columns that are taken for the text, in this order, before the first column of strings.
TEXT_COLUMNS = ("text", "content", "raw", "raw_content", "document", "body", "article", "markdown")
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n\s*")
_LINE = re.compile(r"\r?\n")
# Tokenizers of the GPT family begin a new piece after the line break before a word, and before the one space between
# two words: cutting there changes no token.
_CUT = re.compile(r"\n(?=\S)|(?<=\S)(?= \S)")
_CUT_WINDOW = 4096  # characters at the end of a block in which a place to cut is looked for first


@dataclass(frozen=True, slots=True)
class TextBlock:
    """Some documents in order. A document larger than a block goes on in the next: `continues` and `open_end` tell."""

    file: Path
    first: int
    texts: list[str] | None = None
    block: Block | None = None
    column: str = ""
    continues: bool = False  # the first text goes on with the last document of the block before
    open_end: bool = False  # the last text is not the end of its document

    def decoded(self) -> list[str]:
        """The texts; a null counts as empty. Raises: ValueError naming the file and the record that has no text."""
        if self.texts is not None:
            return self.texts
        assert self.block is not None
        if self.block.batch is not None:
            column = self.block.batch.column(self.column)
            if not _is_text(column.type) and not pa.types.is_null(column.type):
                raise InputError(f"{self.file}: {self.column} is {column.type}, not text")
            return [text or "" for text in column.to_pylist()]
        return [self._text(offset, row.value, row.error) for offset, row in enumerate(self.block.rows())]

    def _text(self, offset: int, record: Any, error: str | None) -> str:
        text = record.get(self.column, "") if isinstance(record, dict) else record
        if error is None and (text is None or isinstance(text, str)) and isinstance(record, dict):
            if self.column in record:
                return text or ""
            error = f"no column {self.column!r}; it has {', '.join(record)}"
        raise InputError(
            f"{self.file}: record {self.first + offset}: {error or f'{self.column} is {text!r:.60}, not text'}"
        )


def text_blocks(folder: Path, text_field: str = AUTO, txt_unit: TxtUnit = "file") -> Iterator[TextBlock]:
    """The documents of every data file in `folder`, in order.

    Raises: ValueError if there is no data file, or no column of text.
    """
    column: str | None = None

    def of_first(path: Path) -> str | None:  # the first file with records decides for all
        nonlocal column
        column = column or text_column(path, text_field)
        return column

    for path in data_files(folder):
        yield from file_blocks(path, of_first, txt_unit)


def file_blocks(path: Path, column_of: Callable[[Path], str | None], txt_unit: TxtUnit) -> Iterator[TextBlock]:
    """The documents of one file; `column_of` finds the column of text in a file with records."""
    if file_format(path) == "txt":
        yield from txt_blocks(path, txt_unit)
        return
    column = column_of(path)
    for block in read_blocks(path, None if column is None else [column]):
        assert column is not None  # a file with a block has a column
        yield TextBlock(path, block.first, block=block, column=column)


def text_column(path: Path, text_field: str = AUTO) -> str | None:
    """The column of text in the file at `path`, None if the file is empty.

    Raises: ValueError if `text_field` is not there or not text or, with `auto`, if no column holds strings.
    """
    block = next(read_blocks(path), None)
    if block is None:
        return None
    if block.batch is not None:
        columns = {field.name: _is_text(field.type) for field in block.batch.schema}
    else:
        row = block.rows()[0]
        if not isinstance(row.value, dict):
            raise InputError(
                f"{path}: record 0: {row.error or f'{row.value!r:.60} is not an object with a text in it'}"
            )
        columns = {name: value is None or isinstance(value, str) for name, value in row.value.items()}
    listed = ", ".join(columns) or "none"
    if text_field != AUTO:
        if not columns.get(text_field):
            why = "does not hold text" if text_field in columns else "does not exist"
            raise InputError(f"{path}: {text_field=} {why}; columns: {listed}")
        return text_field
    found = next((name for name in (*TEXT_COLUMNS, *columns) if columns.get(name)), None)
    if found is None:
        raise InputError(f"{path}: no column of text; columns: {listed}")
    return found


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def txt_blocks(path: Path, unit: TxtUnit) -> Iterator[TextBlock]:
    """The documents of a text file: the whole of it piece by piece, its paragraphs or its lines."""
    if unit == "file":
        pieces = _pieces(path)
        piece = next(pieces, None)
        continues = False
        while piece is not None:
            following = next(pieces, None)
            yield TextBlock(path, 0, [piece], continues=continues, open_end=following is not None)
            piece, continues = following, True
        return
    separator = _PARAGRAPH if unit == "paragraph" else _LINE
    first, rest = 0, ""
    for characters in _characters(path):
        *texts, rest = separator.split(rest + characters)
        if texts and not rest:  # the end of the block may be the middle of a separator
            rest = texts.pop() + "\n\n"
        if texts := [text for text in texts if text.strip()]:
            yield TextBlock(path, first, texts)
            first += len(texts)
    if rest.strip():
        yield TextBlock(path, first, [rest.strip("\r\n")])


def _pieces(path: Path) -> Iterator[str]:
    """The text of a file in pieces of about a block, cut where that changes no token."""
    rest = ""
    for characters in _characters(path):
        rest += characters
        for start in (max(0, len(rest) - _CUT_WINDOW), 0):
            if cut := max((match.end() for match in _CUT.finditer(rest, start)), default=0):
                yield rest[:cut]
                rest = rest[cut:]
                break
    if rest:
        yield rest


def _characters(path: Path) -> Iterator[str]:
    """The text of a file, a block at a time. Raises: ValueError naming the file and the byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position = 0
    with open_stream(path) as stream:
        while True:
            data = stream.read(BLOCK_BYTES)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: not UTF-8 text: {error.reason} near byte {position + error.start}"
                ) from error
            position += len(data)
            if text:
                yield text
            if not data:
                return
