"""The process tree below the guard or the service: who is in it, and telling it to stop without ever touching dvc."""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

import psutil

from flows.interruption import NOTHING_BEGUN

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.2
LEFT_SECONDS = 10  # for what a run has left, other than stages under guard, to end when asked
STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies. Linux only: elsewhere they go to init."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """In a child, before exec: it gets SIGTERM when its parent ends, even by SIGKILL. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def descendants(own: Collection[int]) -> list[psutil.Process]:
    """The living processes below this one. Dead adopted ones are reaped; those in `own` are left to their `Popen`."""
    alive = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
            elif process.pid not in own:
                with contextlib.suppress(ChildProcessError):  # a grandchild, which its own parent reaps
                    os.waitpid(process.pid, os.WNOHANG)
    return alive


def is_dvc(process: psutil.Process) -> bool:
    """Whether this is a dvc (`dvc …`, `python …/dvc …`, `python -m dvc …`), which is never signalled."""
    try:
        return any(Path(argument).name == "dvc" for argument in process.cmdline()[:3])
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def is_guard(process: psutil.Process) -> bool:
    """Whether this is a `python -m flows.guard`, which ends by itself when the stage has saved."""
    try:
        return process.cmdline()[1:3] == ["-m", "flows.guard"]
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


def end_adopted(own: Collection[int], seconds: float) -> None:
    """End what others have left below this process, and return when it is gone.

    Each is asked to stop, once. What is still there after `seconds` is killed, but neither a guard nor what it guards:
    it has a time limit of its own.

    Args:
        own: ids of this process's own children, which are left alone with all below them.
    """
    asked: set[int] = set()
    end = time.monotonic() + seconds
    while alive := _not_below(own, descendants(own)):
        if time.monotonic() < end:
            ask_to_stop(alive, asked)
        else:
            kill_all_but_dvc([process for process in alive if not any(map(is_guard, _line(process)))])
        time.sleep(POLL_SECONDS)


def exit_status(run: Callable[[], int]) -> int:
    """What `run`, a flow on a terminal, returns; 130 and one line after Ctrl-C, 143 and one line after SIGTERM.

    It runs in a child with a process group of its own. A terminal signals the whole group, and Prefect's temporary
    server, gone with the first Ctrl-C, would leave the run trying to reach it for minutes. However the child ends,
    what it has left is ended before this returns. If it is this process that is killed, the child gets SIGTERM.
    """
    adopt_orphans()
    ours = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPERS)  # one that comes now waits until both are ready for it
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        end_with_parent()
        if os.getppid() != ours:
            os.kill(os.getpid(), signal.SIGTERM)  # it was gone before we could ask for the signal
        return _as_child(run)

    def pass_on(signum: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM if signum == signal.SIGHUP else signum)

    for signum in STOPPERS:
        signal.signal(signum, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPERS)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    end_adopted((), LEFT_SECONDS)
    return status if status >= 0 else 128 - status


def _as_child(run: Callable[[], int]) -> int:
    """What `run` returns. SIGTERM raises: the way out is then the usual one, which ends what Prefect started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell without job control has it ignored
    signal.signal(signal.SIGTERM, _raise_exit)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPERS)
        return run()
    except KeyboardInterrupt:
        print(NOTHING_BEGUN, file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as left:
        if left.code == 128 + signal.SIGTERM:
            print(NOTHING_BEGUN, file=sys.stderr)
        raise


def _raise_exit(signum: int, _: object) -> NoReturn:
    raise SystemExit(128 + signum)


def _not_below(pids: Collection[int], processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if not any(above.pid in pids for above in _line(process))]


def _line(process: psutil.Process) -> list[psutil.Process]:
    """The process and those above it."""
    try:
        return [process, *process.parents()]
    except psutil.NoSuchProcess:
        return [process]
