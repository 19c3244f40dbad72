"""Stopping on request: finish the current step, save a checkpoint, and exit with status 75."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Self

# Tells the caller "stopped, can be resumed" (EX_TEMPFAIL of sysexits.h: try again later).
RESUMABLE = os.EX_TEMPFAIL


class Stopped(SystemExit):
    """Training ended early on a signal, after saving a checkpoint. Status 75."""

    def __init__(self, message: str):
        super().__init__(RESUMABLE)
        self.message = message

    def __str__(self) -> str:
        return self.message


def stop_message(signal_name: str | None, step: int, checkpoint: Path | None, resume_from: str) -> str:
    """Message of a stopped training: the line that the flows look for and, under DVC, one that explains DVC's own.

    Args:
        signal_name: None if another rank got the signal.
        resume_from: the parameter. With the default `latest` the next run finds the checkpoint by itself.
    """
    way = "the next run goes on from there" if resume_from == "latest" else f"resume_from: {checkpoint} goes on from it"
    message = f"stopped by {signal_name or 'a signal'}: checkpoint saved at step {step} in {checkpoint}; {way}"
    if "DVC_STAGE" in os.environ:  # set by DVC, which calls every status but 0 a failure
        message += f"\nwhat DVC says next is about this stop (exit status {RESUMABLE}): nothing is broken"
    return message


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
