"""JSON and JSON lines: atomic writing, and reading with one-line errors that name the place."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qwen3llada.artifacts.whole import new_file
from qwen3llada.encodings import seeming_encoding, wide_encoding
from qwen3llada.errors import InputError


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Write `obj` as indented UTF-8 JSON. Raises ValueError for NaN and infinities, which JSON does not have."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    data = text.encode()
    with new_file(path, size=len(data)) as temporary:
        temporary.write_bytes(data)


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file. Raises FileNotFoundError, or InputError naming the file and line that are not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if (wide := wide_encoding(error.doc.encode())) is not None:  # ASCII as UTF-16 without a mark is valid UTF-8
            raise InputError(f"{path}: not UTF-8 text; it seems to be {wide}") from error
        raise InputError(f"{path}: line {error.lineno} is not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        seems = seeming_encoding(error.object)
        raise InputError(
            f"{path}: not UTF-8 text: {error.reason} at byte {error.start}; it seems to be {seems}"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
        raise InputError(f"{path}: not JSON that can be read: {error}") from error


def write_jsonl(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Write one JSON value per line, consuming the iterable. Raises ValueError for NaN and infinities."""
    with new_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: str | os.PathLike) -> Iterator[Any]:
    """Yield the value of each line that is not blank. Skips a byte order mark at the start.

    Raises: FileNotFoundError at once; on reaching the line, InputError naming the file and a line that is not UTF-8
    (with its apparent encoding) or not JSON.
    """
    file = open(path, "rb")  # noqa: SIM115 - opened here so that a missing file is an error of the call

    def values() -> Iterator[Any]:
        with file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    if not text.strip():
                        continue
                    value = json.loads(text)
                except UnicodeDecodeError as error:
                    seems = seeming_encoding(line + file.read(1 << 16) if number == 1 else line)
                    raise InputError(
                        f"{path}: line {number} is not UTF-8 text: {error.reason}; it seems to be {seems}"
                    ) from error
                except json.JSONDecodeError as error:
                    if number == 1 and (wide := wide_encoding(line + file.read(1 << 16))) is not None:
                        raise InputError(f"{path}: not UTF-8 text; it seems to be {wide}") from error
                    raise InputError(f"{path}: line {number} is not JSON: {error.msg}") from error
                except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
                    raise InputError(f"{path}: line {number} is not JSON that can be read: {error}") from error
                yield value

    return values()
