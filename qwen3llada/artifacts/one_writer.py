"""One process at a time writes a folder. The system releases the lock however the process ends."""

import fcntl
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen3llada.errors import InputError

_held: set[int] = set()  # descriptors of locked folders


@contextmanager
def only_writer(folder: Path, path: Path) -> Iterator[None]:
    """Lock `folder`, which exists, while `path` is written.

    Raises: InputError naming `path` if another process holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _held.add(descriptor)
    try:
        if not lock(descriptor, folder):
            raise InputError(f"{path}: another process is writing it; wait for that one, or stop it")
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def lock(descriptor: int, path: Path) -> bool:
    """Lock what `descriptor` opened at `path`. Returns False if another process has locked it.

    On a file system without locks it says so once for each folder and goes on without.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _warn(path, error.strerror)
    return True


@functools.cache
def _warn(path: Path, reason: str) -> None:
    print(f"warning: {path} cannot be locked ({reason}): no second run must use it", file=sys.stderr)


def _close_all() -> None:
    while _held:
        os.close(_held.pop())


# A worker must not keep the lock after its parent was killed. Closing its copy does not release the parent's lock.
os.register_at_fork(after_in_child=_close_all)
