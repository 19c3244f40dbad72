"""A lock that allows one run at a time in a folder. The system releases it however the process ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen3llada.artifacts.one_writer import lock
from qwen3llada.destinations import LOCK_FILE
from qwen3llada.errors import InputError

_held: dict[str, int] = {}  # real path of the lock file -> its descriptor


def hold_folder(knob: str, folder: Path, *, create: bool) -> None:
    """Lock `folder` until `released_folders` or the process ends. Does nothing if this process already holds it.

    The lock file stays after the lock is released; it marks the folder as this project's.

    Args:
        knob: name of the parameter, for the error. create: make a missing folder and lock file. If false, a missing
            lock file means that no run works there, and nothing is locked.

    Raises: InputError in one line that names the process holding the folder; OSError if the folder is not writable.
    """
    path = folder / LOCK_FILE
    if not create and not path.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    key = os.path.realpath(path)
    if key in _held:
        if path.is_file() and os.path.samestat(os.fstat(_held[key]), os.stat(path)):
            return
        os.close(_held.pop(key))  # the folder was removed and made again
    descriptor = _open(path)
    if not lock(descriptor, path):
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise InputError(
            f"{knob}={str(folder)!r} is in use by {holder}: two runs in one folder would overwrite each other's"
            " checkpoints; give another folder or wait"
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[key] = descriptor


@contextmanager
def released_folders() -> Iterator[None]:
    """Release all locks of this process when the context ends."""
    try:
        yield
    finally:
        _close_all()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def _close_all() -> None:
    while _held:
        os.close(_held.popitem()[1])


# A worker must not keep the lock after its parent was killed. Closing its copy does not release the parent's lock.
os.register_at_fork(after_in_child=_close_all)
