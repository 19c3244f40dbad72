"""The documents of a text corpus, in blocks that worker processes decode."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from qwen3llada.corpus.files.reading import data_files, read_blocks
from qwen3llada.corpus.files.rows import BLOCK_BYTES, CONVERT, Block, check_start, file_format, open_stream
from qwen3llada.corpus.text.column import AUTO, is_text, text_column
from qwen3llada.encodings import seeming_encoding
from qwen3llada.errors import InputError

TxtUnit = Literal["file", "paragraph", "line"]

_PARAGRAPH = re.compile(r"\n[ \t\r]*\n\s*")
_LINE = re.compile(r"\r?\n")
# GPT-style pre-tokenizers start a new piece after a line break before a word, and before a single space between words.
# So a cut there changes no token.
_CUT = re.compile(r"\n(?=\S)|(?<=\S)(?= \S)")
_CUT_WINDOW = 4096  # characters at the end of a block that are first searched for a cut


@dataclass(frozen=True, slots=True)
class TextBlock:
    """Consecutive documents. A document larger than a block spans several: see `continues` and `open_end`."""

    file: Path
    first: int
    texts: list[str] | None = None
    block: Block | None = None
    column: str = ""
    continues: bool = False  # the first text continues the last document of the previous block
    open_end: bool = False  # the last text does not complete its document

    def decoded(self) -> list[str]:
        """The texts; null becomes "". Raises: InputError naming the file and a record without text."""
        if self.texts is not None:
            return self.texts
        assert self.block is not None
        if self.block.batch is not None:
            column = self.block.batch.column(self.column)
            if not is_text(column.type) and not pa.types.is_null(column.type):
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
    """The documents of all data files in `folder`, in order.

    Raises: InputError if there is no data file, or no text column (`text_column`).
    """
    paths = data_files(folder)
    column = text_column(paths, text_field)
    for path in paths:
        yield from file_blocks(path, column, txt_unit)


def file_blocks(path: Path, column: str | None, txt_unit: TxtUnit) -> Iterator[TextBlock]:
    """The documents of one file. `column`: the text column, for files with records."""
    if file_format(path) == "txt":
        yield from txt_blocks(path, txt_unit)
        return
    for block in read_blocks(path, None if column is None else [column]):
        assert column is not None  # every file with blocks has a column
        yield TextBlock(path, block.first, block=block, column=column)


def txt_blocks(path: Path, unit: TxtUnit) -> Iterator[TextBlock]:
    """The documents of a text file: all of it, in pieces; its paragraphs; or its lines."""
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
        if texts and not rest:  # the block may end inside a separator
            rest = texts.pop() + "\n\n"
        if texts := [text for text in texts if text.strip()]:
            yield TextBlock(path, first, texts)
            first += len(texts)
    if rest.strip():
        yield TextBlock(path, first, [rest.strip("\r\n")])


def _pieces(path: Path) -> Iterator[str]:
    """The text of a file in pieces of about a block, cut where a cut changes no token."""
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
    """The text of a file in blocks.

    Raises: InputError naming the file, the first invalid byte, and the apparent encoding of the file; or that it is
        compressed.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position = 0
    with open_stream(path) as stream:
        while True:
            data = stream.read(BLOCK_BYTES)
            if position == 0:
                check_start(path, data)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                seems = seeming_encoding(error.object[max(0, error.start - BLOCK_BYTES) :])
                raise InputError(
                    f"{path}: not UTF-8 text: {error.reason} near byte {position + error.start}; "
                    f"it seems to be {seems}. {CONVERT}"
                ) from error
            position += len(data)
            if text:
                yield text
            if not data:
                return
