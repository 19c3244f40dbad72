"""Waiting for what a run in another process does, instead of for a time in which it may or may not do it."""

import time
from collections.abc import Callable
from typing import Any

from runs import saved_steps

DEADLINE = 120  # seconds that a child may take for what is waited for


def newest(params: Any) -> int:
    """The step of the newest checkpoint; 0 if there is none."""
    return max(saved_steps(params.output_dir), default=0)


def wait_until(condition: Callable[[], object], child: Any) -> None:
    """Wait until the condition holds or the child has ended."""
    end = time.monotonic() + DEADLINE
    while child.is_alive() and not condition():
        assert time.monotonic() < end, "the child did not get there in time"
        time.sleep(0.005)
