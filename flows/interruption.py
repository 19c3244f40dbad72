"""What a signal raises (Ctrl-C, SIGTERM, cancellation), turned into an ordinary exception that says what is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

NOTHING_BEGUN = "stopped; the next run goes on from what is saved"

_signals: list[int] = []


class Interrupted(Exception):
    """A run was told to stop. The message says what is saved."""


def interrupted(cause: BaseException, said: str = NOTHING_BEGUN) -> Interrupted:
    """For `cause`, what a signal has raised: KeyboardInterrupt, SystemExit, or Prefect's TerminationSignal."""
    _signals.append(signal.SIGINT if isinstance(cause, KeyboardInterrupt) else signal.SIGTERM)
    return Interrupted(said)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raises `Interrupted` in place of what a signal raises within; other exceptions pass."""
    try:
        yield
    except Exception:
        raise
    except BaseException as cause:
        raise interrupted(cause) from cause


def status_of_stop() -> int:
    """The exit status of a process that was told to stop, as of one that the first signal had killed."""
    return 128 + (_signals[0] if _signals else signal.SIGTERM)
