"""Slots of a named limit: Prefect's global concurrency limit if there is a server, else a file lock."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from prefect.concurrency.sync import concurrency
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

LEASE_SECONDS = 60  # after this the slot of a killed holder is free; Prefect's minimum
POLL_SECONDS = 1.0


def slot(name: str | None) -> AbstractContextManager[None]:
    """Wait for a slot of limit `name` and hold it. Does nothing for None.

    With a server the limit must exist (`prefect gcl create NAME --limit 1`), or Prefect raises. If the server is lost,
    a stage keeps running: stopping it would waste work, and dvc's own locks still protect the workspace. Without a
    server each run starts its own, which cannot free the slots of a killed run; a file lock can.
    """
    if name is None:
        return nullcontext()
    if PREFECT_API_URL.value():
        return concurrency(
            name, occupy=1, strict=True, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False
        )
    return _file_slot(PREFECT_HOME.value() / "limits" / f"{name}.lock")


@contextmanager
def _file_slot(path: Path) -> Iterator[None]:
    """The single slot of a limit for this user on this machine. It is freed as soon as its holder ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL_SECONDS)  # polling instead of a blocking flock, which would block cancellation
        yield
