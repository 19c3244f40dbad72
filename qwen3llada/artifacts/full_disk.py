"""One-line errors for a full disk, whichever library reported it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class FullDiskError(OSError):
    """The disk is full. The message names the output; `errno` is the system's."""


@contextmanager
def full_disk_named(path: str | os.PathLike, size: int | None = None) -> Iterator[None]:
    """Turn a full disk's error into one line that names `path`, the bytes to write (`size`) and the free bytes.

    Raises it at once if `size` bytes cannot fit.
    """
    folder = _existing(Path(path))
    try:
        if size is not None and size > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except Exception as error:
        number = _full_disk_number(error)
        if isinstance(error, FullDiskError) or number is None:
            raise
        needed = f", {size:,} bytes to write" if size is not None else ""
        free = shutil.disk_usage(folder).free
        clear = FullDiskError(f"no space left on the disk for {path}{needed}, {free:,} bytes free")
        clear.errno = number
        raise clear from error


def _full_disk_number(error: BaseException | None) -> int | None:
    """The errno if `error` was caused by a full disk, else None.

    safetensors puts the system's error into the text of its own exception, torch into the exception's context.
    """
    while error is not None:
        for number in FULL_DISK:
            if getattr(error, "errno", None) == number or f"os error {number})" in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def _existing(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())
