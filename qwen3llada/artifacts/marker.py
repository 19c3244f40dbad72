"""The marker file of a folder that this project wrote: it lists the files in the folder."""

from pathlib import Path

from qwen3llada.artifacts.json_files import read_json, write_json
from qwen3llada.errors import InputError

MARKER = ".qwen3llada.json"  # lists the files that this project wrote to a replaceable folder


def mark(folder: Path) -> None:
    """Record the names of all files in `folder`, so that a later run knows what it may replace.

    The marker's bytes depend only on the file names, because DVC hashes the folder.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    written = {"written_by": "qwen3llada", "files": [name for name in names if name != MARKER]}
    write_json(folder / MARKER, written)


def read_marker(folder: Path) -> set[str] | None:
    """The names that `mark` recorded in `folder`; None if there is no marker.

    Raises: InputError naming a marker that is damaged.
    """
    if not (folder / MARKER).is_file():
        return None
    tree = read_json(folder / MARKER)
    files = tree.get("files") if isinstance(tree, dict) else None
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise InputError(f"{folder / MARKER}: damaged: it must list the files that were written")
    return set(files)
