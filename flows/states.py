"""States of tasks and flows that were told to stop: cancelled, with a message on what the next run goes on from.

Prefect logs "Crash detected!" if a signal's exception leaves a task or flow. So both catch it and return such a state.
"""

import signal
import sys
from typing import Any

from prefect._internal.control_listener import get_intent  # there is no public API for it
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.states import Cancelled, State

from flows.interruption import NOTHING_BEGUN, Interrupted, status_of_stop


def result_of(state: State) -> Any:
    """The return value of a task. Raises: its exception; `Interrupted` if it was told to stop."""
    if state.is_cancelled():
        raise Interrupted(state.message or NOTHING_BEGUN)
    return state.result()


def end_of_task(stop: Interrupted) -> State:
    """The state of a task that was told to stop."""
    return Cancelled(message=str(stop))


def end_of_flow(stop: Interrupted) -> State:
    """The state of a flow that was told to stop.

    Raises: `TerminationSignal` if a worker asked for the stop, because the worker sets the run's state: Cancelled for a
        cancelled run; an evicted pod is scheduled again.
    """
    if get_intent() is not None:
        get_run_logger().info("%s", stop)
        raise TerminationSignal(signal.SIGTERM) from stop
    return Cancelled(message=str(stop))


def report(state: State) -> int:
    """Print a line for a flow that did not complete. Returns the exit status of the process."""
    if state.is_completed():
        return 0
    print(state.message if state.is_cancelled() else f"error: {state.message}", file=sys.stderr)
    return status_of_stop() if state.is_cancelled() else 1
