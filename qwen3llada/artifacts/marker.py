"""The marker of a folder that this project wrote, with the names of the files there."""

from pathlib import Path

from qwen3llada.artifacts.json_files import read_json, write_json
from qwen3llada.errors import InputError

MARKER = ".qwen3llada.json"  # in a folder that may be replaced whole: what this project wrote there


def mark(folder: Path) -> None:
    """Record in `folder` the names of the files in it, so that a later run knows what it may replace.

    The marker has the same bytes wherever the same files are written: DVC hashes the folder.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    written = {"written_by": "qwen3llada", "files": [name for name in names if name != MARKER]}
    write_json(folder / MARKER, written)


def read_marker(folder: Path) -> set[str] | None:
    """The names that `mark` recorded in `folder`; None where there is no marker.

    Raises: InputError naming a marker that is damaged.
    """
    if not (folder / MARKER).is_file():
        return None
    tree = read_json(folder / MARKER)
    files = tree.get("files") if isinstance(tree, dict) else None
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise InputError(f"{folder / MARKER}: damaged: it must list the files that were written")
    return set(files)
