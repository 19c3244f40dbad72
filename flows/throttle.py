"""Batches many lines of output into few log records: records are expensive, and progress bars redraw constantly."""

import time
from collections.abc import Callable


class Throttle:
    """Splits bytes into lines and passes them to `emit` in batches, at most one batch per `seconds`.

    Of a progress bar redrawn with carriage returns only the latest state is kept. Of a batch longer than `longest`
    lines only the first and last half are kept, with a line on how many are left out. `tail`: the last `longest` lines.
    """

    def __init__(self, emit: Callable[[list[str]], None], seconds: float = 1.0, longest: int = 200) -> None:
        self.emit, self.seconds, self.longest = emit, seconds, longest
        self.tail: list[str] = []
        self._batch: list[str] = []
        self._rest = b""
        self._shown = ""
        self._next = 0.0

    def feed(self, data: bytes) -> None:
        """Add output, which may end in the middle of a line."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._add(line)
        self.tick()

    def tick(self) -> None:
        """Emit the current batch if it is due."""
        if time.monotonic() >= self._next:
            self._flush()

    def close(self) -> None:
        """Emit the rest."""
        if self._rest:
            self._add(self._rest)
            self._rest = b""
        self._flush()

    def _add(self, line: bytes) -> None:
        text = line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace").rstrip()
        if text != self._shown or b"\r" not in line:
            self._batch.append(text)
        self._shown = ""
        self.tail = [*self.tail[-self.longest + 1 :], text]

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        batch += self._progress()
        if not batch:
            return
        if (left_out := len(batch) - self.longest) > 0:
            half = self.longest // 2
            batch = [*batch[:half], f"… {left_out} lines left out …", *batch[half + left_out :]]
        self.emit(batch)
        self._next = time.monotonic() + self.seconds

    def _progress(self) -> list[str]:
        """The latest state of a progress bar in an unfinished line, if it is new. Older states are dropped."""
        drawn = [state for state in self._rest.split(b"\r") if state.strip()]
        if b"\r" not in self._rest or not drawn:
            return []
        self._rest = b"\r" + drawn[-1]
        current = drawn[-1].decode("utf-8", "replace").strip()
        if current == self._shown:
            return []
        self._shown = current
        return [current]
