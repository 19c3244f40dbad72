"""Runs one stage: `dvc repro --single-item` under guard, lines to a callback, the end as an `Outcome`."""

import os
import select
import subprocess
import sys
from collections.abc import Callable

from flows.environment import environment
from flows.graph import Stage
from flows.outcome import Outcome, StageFailedError, read_outcome
from flows.throttle import Throttle

POLL_SECONDS = 0.5


def run_stage(stage: Stage, emit: Callable[[list[str]], None], *, force: bool = False) -> Outcome:
    """Run `stage` in the current folder; `emit` gets batches of its output.

    An exception that arrives meanwhile (cancellation, Ctrl-C) stops the stage, waits until it has saved what it needs
    and ended, and goes on. Raises: `StageFailedError`.
    """
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", *(["--force"] if force else []), stage.name]
    outcome = run_dvc(command, emit, timeout=60 * stage.policy.timeout_minutes, grace=stage.policy.grace_seconds)
    if not outcome.ok:
        raise StageFailedError(stage.name, outcome)
    return outcome


def run_dvc(command: list[str], emit: Callable[[list[str]], None], *, timeout: float, grace: float) -> Outcome:
    """Run a dvc command under guard in the current folder; seconds for `timeout` (0: none) and `grace`."""
    limits = ["--timeout", str(timeout), "--grace", str(grace)]
    guard = subprocess.Popen(
        [sys.executable, "-m", "flows.guard", *limits, "--", *command],
        stdin=subprocess.PIPE,  # its end tells the guard that we are gone, however we went
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert guard.stdin is not None
    assert guard.stdout is not None
    throttle = Throttle(emit)
    try:
        _pump(guard, throttle)
    except BaseException:
        guard.stdin.close()
        _pump(guard, throttle)
        raise
    finally:
        throttle.close()
    return read_outcome(guard.wait(), throttle.tail)


def _pump(guard: subprocess.Popen, throttle: Throttle) -> None:
    """Pass on output until the guard has closed it, which it does by ending."""
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
