"""The process tree below the guard or the service: finding its processes, and stopping them without signalling dvc."""

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
LEFT_SECONDS = 10  # for leftovers of a run, other than guarded stages, to end when asked
STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies. Linux only; elsewhere init does."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """In a child, before exec: request SIGTERM when the parent ends, even by SIGKILL. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def descendants(own: Collection[int]) -> list[psutil.Process]:
    """Living processes below this one. Dead adopted ones are reaped; those in `own` are left to their `Popen`."""
    alive = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
            elif process.pid not in own:
                with contextlib.suppress(ChildProcessError):  # a grandchild, reaped by its own parent
                    os.waitpid(process.pid, os.WNOHANG)
    return alive


def is_dvc(process: psutil.Process) -> bool:
    """Whether this is a dvc (`dvc …`, `python …/dvc …`, `python -m dvc …`), which must never be signalled."""
    try:
        return any(Path(argument).name == "dvc" for argument in process.cmdline()[:3])
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def is_guard(process: psutil.Process) -> bool:
    """Whether this is a `python -m flows.guard`, which ends by itself once the stage has saved."""
    try:
        return process.cmdline()[1:3] == ["-m", "flows.guard"]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def ignores(process: psutil.Process, signum: int) -> bool:
    """Whether the process ignores the signal: dvc, the shell below it, and a trainer that is still importing do."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False  # the process is gone, or there is no /proc
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (signum - 1) & 1)


def ask_to_stop(alive: list[psutil.Process], asked: set[int]) -> None:
    """Send SIGTERM once to the topmost processes that listen. Called repeatedly while stopping.

    dvc and its shells ignore the signal, so it goes to the processes that they run. A launcher of several processes
    passes it on. A process that still ignores it because it is importing gets it once its handler is installed.
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
    """SIGKILL every process below that is not dvc. dvc then ends by itself, with intact files."""
    for process in alive:
        if not is_dvc(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def end_adopted(own: Collection[int], seconds: float) -> None:
    """End processes that others left below this one. Returns when all are gone.

    Each is asked to stop once. After `seconds` the rest is killed, except guards and the processes below them: a guard
    has its own time limit.

    Args:
        own: ids of this process's own children, which are left alone with everything below them.
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
    """Run `run`, a flow in a terminal, and return its status; 130 after Ctrl-C, 143 after SIGTERM, with one line each.

    `run` runs in a child with its own process group. A terminal signals the whole group, so Prefect's temporary server
    would be gone at the first Ctrl-C, and the run would try to reach it for minutes. Everything that the child leaves
    is ended before this returns. If this process is killed, the child gets SIGTERM.
    """
    adopt_orphans()
    ours = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPERS)  # a signal now waits until both processes can handle it
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        end_with_parent()
        if os.getppid() != ours:
            os.kill(os.getpid(), signal.SIGTERM)  # the parent ended before the request for the signal
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
    """Run `run` in the child. SIGTERM raises, so that the usual cleanup ends what Prefect started."""
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
    """The process and its ancestors."""
    try:
        return [process, *process.parents()]
    except psutil.NoSuchProcess:
        return [process]
