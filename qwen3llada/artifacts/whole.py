"""Files and folders that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qwen3llada.artifacts.full_disk import full_disk_named
from qwen3llada.artifacts.on_disk import flush, remove, settle


@contextmanager
def new_file(path: str | os.PathLike, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to; on success flush it and rename it to `path`.

    Missing parent folders are made. `size`, the number of bytes about to be written where it is known, is named in the
    error when the disk is full.
    Raises: OSError in one line, naming `path`, when the disk is full; what the body raises. The old file then stays.
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


@contextmanager
def new_folder(path: str | os.PathLike, size: int | None = None) -> Iterator[Path]:
    """Yield an empty temporary sibling folder to fill; on success flush it and put it in the place of `path`.

    The temporary folder is always `.NAME.partial` beside `path`: there is one writer at a time, every process of a
    distributed run can name it, and what a killed run left is removed by the next one. `size` as in `new_file`.
    Raises: OSError in one line, naming `path`, when the disk is full; whatever the body raises. What was at `path`
    before then stays, and nothing else is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.partial"
    remove(temporary)
    try:
        with full_disk_named(path, size):
            temporary.mkdir()
            yield temporary
            publish(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def publish(folder: Path, path: Path) -> None:
    """Flush `folder` to the disk and rename it to `path`; what was at `path` is removed only after that.

    A folder cannot be renamed over one that has files, so the old one steps aside and returns if the rename fails.
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
    """Yield a temporary sibling of each path, not there yet; on success all take their places, or none does.

    The body makes a file or a folder at each. Whatever the body raises, or the renames, everything is as it was before.
    The last path should be the record of the others: a process that is killed between two renames leaves no file there.
    Raises: OSError in one line when the disk is full; whatever the body raises.
    """
    temporaries = [path.parent / f".{path.name}.partial" for path in paths]
    for path, temporary in zip(paths, temporaries, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
    try:
        with full_disk_named(Path(os.path.commonpath([path.absolute().parent for path in paths])) / "*"):
            yield temporaries
            for temporary in temporaries:
                settle(temporary)
            _swap(paths, temporaries)
    except BaseException:
        for temporary in temporaries:
            remove(temporary)
        raise


def _swap(paths: Sequence[Path], temporaries: Sequence[Path]) -> None:
    """Rename each temporary to its path; undo all of it if one rename fails."""
    olds = [path.parent / f".{path.name}.old" for path in paths]
    for path, old in zip(paths, olds, strict=True):  # what a killed process left between two renames
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
            if not os.path.lexists(temporary):  # it has been put in place
                os.rename(path, temporary)
            if os.path.lexists(old):
                os.rename(old, path)
        raise
    for folder in {path.parent for path in paths}:
        flush(folder)
    for old in olds:
        remove(old)
