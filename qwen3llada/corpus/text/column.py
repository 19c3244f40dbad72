"""The text column of a source: the named one, or the one that schema and sampled rows suggest."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from qwen3llada.corpus.files.reading import read_blocks
from qwen3llada.corpus.files.rows import Block, file_format
from qwen3llada.errors import InputError

AUTO = "auto"
#: Column names that are taken as the text, in this order, before any other column.
TEXT_COLUMNS = ("text", "content", "raw", "raw_content", "document", "body", "article", "markdown")
FILES = 16  # files to sample, evenly spread over the source
ROWS = 1_000  # rows to sample per file; more, up to MOST_ROWS, while a column has shown only nulls
MOST_ROWS = 100_000
PROSE_WORDS = 5  # words in a value that count as prose, unlike a label, a name or an address
PROSE_LETTERS = 10  # or letters beyond ASCII, for languages without spaces between words
MUCH_LONGER = 4  # a prose column that is so many times longer than any other is the text


@dataclass
class Column:
    """Statistics of one column over the sampled rows."""

    name: str
    texts: int = 0  # values that are text
    filled: int = 0  # texts that are not blank
    prose: int = 0  # texts that read like prose
    characters: int = 0
    different: set[int] = field(default_factory=set)  # hashes
    wrong: str | None = None  # place and value of the first non-text

    @property
    def usable(self) -> bool:
        return self.wrong is None and self.texts > 0

    @property
    def is_prose(self) -> bool:
        """Whether at least half of the values read like prose and they are not a few repeated labels."""
        return self.usable and 2 * self.prose > self.filled and 5 * len(self.different) >= self.filled

    def add(self, value: Any, place: str) -> None:
        if isinstance(value, str):
            self.texts += 1
            self.characters += len(value)
            if value.strip():
                self.filled += 1
                self.prose += _reads_like_prose(value[:2000])
                self.different.add(hash(value))
        elif value is not None and self.wrong is None:
            self.wrong = f"{place}: {self.name} is {value!r:.60}, not text"


def text_column(paths: Sequence[Path], text_field: str = AUTO) -> str | None:
    """The text column of the files at `paths`, ignoring plain text files; None if none of them has records.

    With `auto`: the first of `TEXT_COLUMNS` that exists, else the one column that reads like prose. Nulls count neither
    for nor against a column.
    Raises: InputError if `text_field` does not exist or is no text. With `auto`: if the first of `TEXT_COLUMNS` cannot
    be used, or if no column or several could be the text; the message names the candidates.
    """
    files = [path for path in paths if file_format(path) != "txt"]
    columns: dict[str, Column] = {}
    for path in files[:: max(1, -(-len(files) // FILES))]:
        _look_at(path, columns)
    if not columns:
        return None
    if text_field != AUTO:
        return _named(files[0], columns, text_field)
    return _found(files[0], columns)


def _look_at(path: Path, columns: dict[str, Column]) -> None:
    rows = 0
    for block in read_blocks(path):
        if block.batch is not None:
            for column in block.batch.schema:
                known = columns.setdefault(column.name, Column(column.name))
                if not is_text(column.type) and not pa.types.is_null(column.type):
                    known.wrong = known.wrong or f"{path}: {column.name} is {column.type}, not text"
        rows += _add_rows(block, columns)
        if rows >= MOST_ROWS or (rows >= ROWS and all(c.texts or c.wrong for c in columns.values())):
            return


def _add_rows(block: Block, columns: dict[str, Column]) -> int:
    rows = block.rows()
    for number, row in enumerate(rows, start=block.first):
        place = f"{block.file}: record {number}"
        if not isinstance(row.value, dict):
            if not columns:
                raise InputError(f"{place}: {row.error or f'{row.value!r:.60} is not an object with a text in it'}")
            continue  # the reader of this row will report it
        for name, value in row.value.items():
            columns.setdefault(name, Column(name)).add(value, place)
    return len(rows)


def _named(path: Path, columns: dict[str, Column], text_field: str) -> str:
    column = columns.get(text_field)
    if column is None:
        raise InputError(f"{path}: {text_field=} does not exist; columns: {', '.join(columns)}")
    if column.wrong is not None:
        raise InputError(f"{column.wrong}: {text_field=} does not hold text; columns: {', '.join(columns)}")
    return text_field


def _found(path: Path, columns: dict[str, Column]) -> str:
    usable = [column for column in columns.values() if column.usable]
    prose = sorted((column for column in usable if column.is_prose), key=lambda c: -c.characters / c.texts)
    first = next((columns[name] for name in TEXT_COLUMNS if name in columns), None)
    candidates = ", ".join(column.name for column in prose or usable if column is not first) or "none"
    if first is not None:
        if not first.usable:
            why = first.wrong or f"{path}: {first.name} is null in all rows looked at"
            raise InputError(f"{why}; set text_field to the column of the text; candidates: {candidates}")
        if first.name == TEXT_COLUMNS[0] or first.is_prose or not prose:
            return first.name
    elif len(prose) == 1 or (prose and _length(prose[0]) >= MUCH_LONGER * _length(prose[1])):
        return prose[0].name
    elif len(columns) == 1 and usable:
        return usable[0].name
    if not usable:
        raise InputError(f"{path}: no column of text; columns: {', '.join(columns)}")
    why = f"{first.name} does not read like text" if first else "no column is clearly the text"
    raise InputError(f"{path}: {why}; set text_field to one of the candidates: {candidates}")


def _length(column: Column) -> float:
    return column.characters / column.texts


def _reads_like_prose(value: str) -> bool:
    words = sum(2 * sum(map(str.isalpha, word)) >= len(word) for word in value.split())
    return words >= PROSE_WORDS or sum(c.isalpha() and not c.isascii() for c in value) >= PROSE_LETTERS


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is text, or a dictionary of texts."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
