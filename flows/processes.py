"""The process tree below the guard: who is in it, and telling it to stop without ever touching dvc."""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies. Linux only: elsewhere they go to init."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(dvc_pid: int) -> list[psutil.Process]:
    """The living processes below this one. Dead adopted ones are reaped, `dvc_pid` is left to its `Popen`."""
    alive = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
            elif process.pid != dvc_pid:
                with contextlib.suppress(ChildProcessError):  # a grandchild, which its own parent reaps
                    os.waitpid(process.pid, os.WNOHANG)
    return alive


def is_dvc(process: psutil.Process) -> bool:
    """Whether this is a dvc (`dvc …`, `python …/dvc …`, `python -m dvc …`), which is never signalled."""
    try:
        return any(Path(argument).name == "dvc" for argument in process.cmdline()[:3])
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def ignores(process: psutil.Process, signum: int) -> bool:
    """Whether the process ignores the signal: dvc and the shell below it do, and a trainer that is still importing."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False  # gone, or no /proc here
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (signum - 1) & 1)


def ask_to_stop(alive: list[psutil.Process], asked: set[int]) -> None:
    """SIGTERM, once each, to the topmost processes that listen; called again and again while stopping.

    dvc and shells ignore the signal by inheritance, so it goes to what they run. A launcher of several processes passes
    it on itself. A process that still ignores it (it is importing) is asked as soon as it has installed its handler.
    """
    below = {process.pid: process for process in alive}
    for process in alive:
        if process.pid in asked or is_dvc(process) or ignores(process, signal.SIGTERM):
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            above = [parent for parent in process.parents() if parent.pid in below]
            if all(is_dvc(parent) or ignores(parent, signal.SIGTERM) for parent in above):
                process.terminate()
                asked.add(process.pid)


def kill_all_but_dvc(alive: list[psutil.Process]) -> None:
    """SIGKILL to every process below that is not dvc; dvc then ends by itself, with its files whole."""
    for process in alive:
        if not is_dvc(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
