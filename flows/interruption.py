"""Conversion of exceptions from signals (Ctrl-C, SIGTERM, cancellation) to one that says what has been saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

NOTHING_BEGUN = "stopped; the next run goes on from what is saved"

_signals: list[int] = []


class Interrupted(Exception):
    """A run was told to stop. The message says what has been saved."""


def interrupted(cause: BaseException, said: str = NOTHING_BEGUN) -> Interrupted:
    """`Interrupted` for `cause`, raised by a signal: KeyboardInterrupt, SystemExit, or Prefect's TerminationSignal."""
    _signals.append(signal.SIGINT if isinstance(cause, KeyboardInterrupt) else signal.SIGTERM)
    return Interrupted(said)


@contextmanager
def interruptible() -> Iterator[None]:
    """Convert exceptions raised by signals in this context to `Interrupted`. Other exceptions pass."""
    try:
        yield
    except Exception:
        raise
    except BaseException as cause:
        raise interrupted(cause) from cause


def status_of_stop() -> int:
    """Exit status of a process that was told to stop: as if the first signal had killed it."""
    return 128 + (_signals[0] if _signals else signal.SIGTERM)
