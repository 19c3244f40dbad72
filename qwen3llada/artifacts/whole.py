"""Files and folders that appear completely or not at all."""

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from qwen3llada.artifacts.full_disk import full_disk_named
from qwen3llada.artifacts.on_disk import flush, remove, settle
from qwen3llada.artifacts.one_writer import only_writer

_UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial")  # temporary names of `new_file`


@contextmanager
def new_file(path: str | os.PathLike, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to. On success flush it and rename it to `path`.

    Makes missing parent folders. `size`, the number of bytes to be written if known, appears in the error about a full
    disk.
    Raises: OSError in one line, naming `path`, if the disk is full; exceptions of the body. The old file then stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        with full_disk_named(path, size):
            yield temporary
            settle(temporary)
            os.replace(temporary, path)
            flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def finished_name(name: str) -> str:
    """The name of the file for which `name` is a temporary sibling made by `new_file`; else `name` itself."""
    match = _UNFINISHED.fullmatch(name)
    return match["name"] if match else name


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process was writing to `folder` with `new_file`. Nobody else may be writing there."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if finished_name(path.name) != path.name:
            remove(path)


@contextmanager
def new_folder(path: str | os.PathLike, size: int | None = None) -> Iterator[Path]:
    """Yield an empty temporary sibling folder to fill. On success flush it and replace `path` by it.

    The temporary folder is always `.NAME.partial` beside `path`: there is only one writer at a time, all ranks know the
    name, and the next run removes what a killed one left. `size` as in `new_file`.
    Raises: OSError in one line, naming `path`, if the disk is full; InputError if another process is writing `path`;
    exceptions of the body. The old content of `path` then stays, and nothing else is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.partial"
    with suppress(FileNotFoundError, NotADirectoryError), only_writer(temporary, path):
        remove(temporary)
    remove(temporary)
    try:
        with full_disk_named(path, size):
            temporary.mkdir()
            with only_writer(temporary, path):
                yield temporary
                publish(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def publish(folder: Path, path: Path) -> None:
    """Flush `folder` to disk and rename it to `path`. The old content of `path` is removed only afterwards.

    A folder cannot be renamed over one with files, so the old one is set aside, and restored if the rename fails.
    """
    settle(folder)
    old = path.parent / f".{path.name}.old"
    if os.path.lexists(path):
        remove(old)
        os.rename(path, old)
    try:
        os.rename(folder, path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.rename(old, path)
        raise
    flush(path.parent)
    remove(old)


@contextmanager
def new_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield a temporary sibling for each path, which does not exist yet. On success all replace their paths, or none.

    The body makes a file or folder at each. If the body or a rename raises, everything stays as it was. The last path
    should be the record of the others: a process killed between two renames leaves no file there.
    Raises: OSError in one line if the disk is full; InputError if another process is writing there; exceptions of the
    body.
    """
    temporaries = [path.parent / f".{path.name}.partial" for path in paths]
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(folder, folder):
        for temporary in temporaries:
            remove(temporary)
        try:
            with full_disk_named(folder / "*"):
                yield temporaries
                for temporary in temporaries:
                    settle(temporary)
                _swap(paths, temporaries)
        except BaseException:
            for temporary in temporaries:
                remove(temporary)
            raise


def _swap(paths: Sequence[Path], temporaries: Sequence[Path]) -> None:
    """Rename each temporary to its path. If one rename fails, undo all."""
    olds = [path.parent / f".{path.name}.old" for path in paths]
    for path, old in zip(paths, olds, strict=True):  # leftovers of a process killed between two renames
        if os.path.lexists(old) and not os.path.lexists(path):
            os.rename(old, path)
        remove(old)
    try:
        for path, old in reversed([*zip(paths, olds, strict=True)]):
            if os.path.lexists(path):
                os.rename(path, old)
        for path, temporary in zip(paths, temporaries, strict=True):
            os.rename(temporary, path)
    except BaseException:
        for path, old, temporary in zip(paths, olds, temporaries, strict=True):
            if os.path.lexists(path) and not os.path.lexists(temporary):  # already renamed
                os.rename(path, temporary)
            if os.path.lexists(old):
                os.rename(old, path)
        raise
    for folder in {path.parent for path in paths}:
        flush(folder)
    for old in olds:
        remove(old)
