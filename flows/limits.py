"""Slots of a named limit: Prefect's global concurrency limit where there is a server, else a file lock."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from prefect.concurrency.sync import concurrency
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

LEASE_SECONDS = 60  # a slot whose holder was killed is free after this; Prefect allows no less
POLL_SECONDS = 1.0


def slot(name: str | None) -> AbstractContextManager[None]:
    """Wait for a slot of limit `name` and hold it; nothing for None.

    With a server the limit must exist (`prefect gcl create NAME --limit 1`), or Prefect raises. Losing the server does
    not end a stage that holds a slot: it would throw away work, and dvc's own locks still protect the workspace.
    Without one, each run is its own server, which cannot free the slots of a killed run; a file lock can.
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
    """The one slot of a limit on this machine, for this user; it is free as soon as its holder is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(POLL_SECONDS)  # not a blocking flock: cancellation must get through
        yield
