"""Stopping on request: the step in hand is finished, a checkpoint saved, and the process leaves with status 75."""

import os
import signal
from types import FrameType
from typing import Self

# "Stopped, can be resumed", for whoever started us (EX_TEMPFAIL of sysexits.h: try again later).
RESUMABLE = os.EX_TEMPFAIL


class Stopped(SystemExit):
    """Training ended early on a signal, after saving a checkpoint. Status 75."""

    def __init__(self, message: str):
        super().__init__(RESUMABLE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """While active, SIGTERM and SIGINT only set `signal`. A second SIGINT interrupts at once, as usual."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: str | None = None

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
