"""Runs one stage: `dvc repro --single-item` under a guard, with output to a callback and an `Outcome` at the end."""

import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from flows.environment import child_environment
from flows.graph import Stage
from flows.interruption import Interrupted, interrupted
from flows.outcome import REPORT_OF_STOP, Outcome, StageFailedError, read_outcome
from flows.throttle import Throttle

POLL_SECONDS = 0.5
HERE = Path()

_running: set[subprocess.Popen] = set()
_stopping = threading.Event()


# dvc's hints to terminal users after every stage.
_HINTS = re.compile(
    r"\s*(git add .*|dvc config core\.autostage true|To track the changes with git, run:"
    r"|To enable auto staging, run:|Use `dvc push` to send your updates to remote storage\.)?\s*"
)


def run_stage(stage: Stage, emit: Callable[[list[str]], None], *, force: bool = False, root: Path = HERE) -> Outcome:
    """Run `stage` of the project at `root`. `emit` gets batches of its output.

    An exception raised by a signal (cancellation, Ctrl-C) stops the stage, which first saves its state. Raises:
    `StageFailedError`; `Interrupted` after a signal or `stop_all`, with what the stage has saved.
    """
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", *(["--force"] if force else []), stage.name]
    policy = stage.policy
    try:
        outcome = run_dvc(command, emit, timeout=60 * policy.timeout_minutes, grace=policy.grace_seconds, root=root)
    except Interrupted as stop:
        raise Interrupted(f"stage {stage.name}: {stop}") from stop
    if not outcome.ok:
        raise StageFailedError(stage.name, outcome)
    return outcome


def run_dvc(
    command: list[str], emit: Callable[[list[str]], None], *, timeout: float, grace: float, root: Path
) -> Outcome:
    """Run a dvc command under a guard in the project at `root`. `timeout` (0: none) and `grace` are in seconds.

    Raises: `Interrupted`, with what was saved, if the command was told to stop.
    """
    limits = ["--timeout", str(timeout), "--grace", str(grace)]
    guard = subprocess.Popen(
        [sys.executable, "-m", "flows.guard", *limits, "--", *command],
        stdin=subprocess.PIPE,  # its end tells the guard that this process is gone, for whatever reason
        stdout=subprocess.PIPE,
        env=child_environment(),
        cwd=root,
        process_group=0,  # Prefect kills the group of a cancelled run after 30 s; the stage may need longer to save
    )
    _running.add(guard)
    if _stopping.is_set():
        _let_go(guard)
    throttle = Throttle(lambda lines: _emit_what_matters(lines, emit))
    signalled: BaseException | None = None
    try:
        _pump(guard, throttle)
    except BaseException as cause:
        _let_go(guard)
        _pump(guard, throttle)
        if isinstance(cause, Exception):
            raise
        signalled = cause
    finally:
        _running.discard(guard)
        throttle.close()
    outcome = read_outcome(guard.wait(), throttle.tail)
    if signalled is not None:
        raise interrupted(signalled, outcome.message) from signalled
    if outcome.kind == "cancelled":  # stopped by `stop_all`
        raise Interrupted(outcome.message)
    return outcome


def _emit_what_matters(lines: list[str], emit: Callable[[list[str]], None]) -> None:
    if kept := [line for line in lines if not _HINTS.fullmatch(line) and not REPORT_OF_STOP.search(line)]:
        emit(kept)


def stop_all() -> None:
    """Stop current and future stages of other threads in this process; they raise `Interrupted`."""
    _stopping.set()
    for guard in list(_running):
        _let_go(guard)


def _let_go(guard: subprocess.Popen) -> None:
    """Close the guard's standard input, which makes it stop the stage."""
    assert guard.stdin is not None
    guard.stdin.close()


def _pump(guard: subprocess.Popen, throttle: Throttle) -> None:
    """Forward output until the guard has ended."""
    assert guard.stdout is not None
    output = guard.stdout.fileno()
    while True:
        if select.select([output], [], [], POLL_SECONDS)[0]:
            data = os.read(output, 65536)
            if not data:
                break
            throttle.feed(data)
        throttle.tick()
    guard.wait()
