"""Permissions and flushing of written files and folders."""

import os
import secrets
import shutil
import stat
from pathlib import Path


def settle(path: Path) -> None:
    """Give a file, or a folder with its content, the usual permissions, and flush it to disk."""
    usual = _folder_mode(path.parent)
    if path.is_file():
        _set_mode(path, usual & 0o666)
        flush(path)
    for directory, _, files in os.walk(path):
        for name in files:
            _set_mode(Path(directory, name), usual & 0o666)
            flush(Path(directory, name))
        _set_mode(Path(directory), usual)
        flush(Path(directory))


def _folder_mode(parent: Path) -> int:
    """The permissions of a new folder in `parent`, given the umask, the mount and the parent's default ACL.

    Determined by making and removing a folder, because Python can only read the umask by setting it for all threads.
    """
    probe = parent / f".mode.{secrets.token_hex(4)}.partial"
    probe.mkdir()
    try:
        return probe.stat().st_mode & 0o777
    finally:
        probe.rmdir()


def _set_mode(path: Path, mode: int) -> None:
    present = stat.S_IMODE(path.lstat().st_mode)
    if present & 0o777 != mode and not path.is_symlink():
        path.chmod(present & ~0o777 | mode)


def flush(path: Path) -> None:
    """Wait until the file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, link or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
