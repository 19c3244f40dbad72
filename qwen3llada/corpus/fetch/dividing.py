"""The keys by which rows are held out: the text of a document, the first prompt of a conversation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen3llada.corpus.fetch.selection import Files, Selection
from qwen3llada.corpus.fetch.sources import ConversationData, TextData
from qwen3llada.corpus.files.rows import file_format
from qwen3llada.corpus.text.column import AUTO, text_column
from qwen3llada.corpus.text.same_text import prompts
from qwen3llada.errors import InputError


def selections(params: TextData | ConversationData, column: "TextColumn") -> tuple[Selection, Selection]:
    """A selection without held-out rows, and one with `heldout_fraction`."""
    if isinstance(params, TextData):
        whole = Selection(params.columns, 0.0, column.text_of, params.txt_unit)
    else:
        whole = Selection(params.columns, 0.0, _opening, prompts=prompts)
    return whole, replace(whole, heldout_fraction=params.heldout_fraction)


def _opening(path: Path, value: Any) -> str:
    """The key of a conversation: its first prompt; the whole record if it has none."""
    asked = prompts(value)
    return asked[0] if asked else str(value)


class TextColumn:
    """The text column of each source, determined when a text is first needed."""

    def __init__(self, params: TextData | ConversationData, sources: list[list[Files]]):
        self._field = getattr(params, "text_field", AUTO)
        self._paths = [[path for part in files for path in part.paths] for files in sources]
        self._columns: dict[Path, str | None] = {}

    def text_of(self, path: Path, value: Any) -> str:
        """The text of a row, which is its key. Raises: InputError naming a file with a row without text."""
        if path not in self._columns:
            source = next(paths for paths in self._paths if path in paths)
            self._columns |= dict.fromkeys(source, text_column(source, self._field))
        column = "text" if file_format(path) == "txt" else self._columns[path]
        text = value.get(column) if isinstance(value, dict) else None
        if not isinstance(text, str) and (text is not None or column not in (value or ())):
            raise InputError(f"{path}: {column} of a record is {text!r:.60}, not text")
        return text or ""

    def facts(self) -> dict[str, Any]:
        """Facts for SOURCE.json: the columns that were read, if any."""
        found = sorted({column for column in self._columns.values() if column is not None})
        return {"text_field": found[0] if len(found) == 1 else found} if found else {}
