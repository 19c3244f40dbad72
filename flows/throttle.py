"""Many lines of output in few log records: each record costs the server, and a progress bar redraws all the time."""

import time
from collections.abc import Callable


class Throttle:
    """Splits bytes into lines and hands them to `emit` in batches, at most one batch per `seconds`.

    Of what a progress bar redraws with carriage returns only the newest state is kept. Of a batch longer than
    `longest` lines the first and last half are kept, and a line says how many are left out. `tail` holds the last
    `longest` lines.
    """

    def __init__(self, emit: Callable[[list[str]], None], seconds: float = 1.0, longest: int = 200) -> None:
        self.emit, self.seconds, self.longest = emit, seconds, longest
        self.tail: list[str] = []
        self._batch: list[str] = []
        self._rest = b""
        self._shown = ""
        self._next = 0.0

    def feed(self, data: bytes) -> None:
        """Take some output, which may end in mid-line."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._add(line)
        self.tick()

    def tick(self) -> None:
        """Emit what has come, if it is time."""
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
        """The state of a progress bar in mid-line, if it is news; older states are forgotten."""
        drawn = [state for state in self._rest.split(b"\r") if state.strip()]
        if b"\r" not in self._rest or not drawn:
            return []
        self._rest = b"\r" + drawn[-1]
        current = drawn[-1].decode("utf-8", "replace").strip()
        if current == self._shown:
            return []
        self._shown = current
        return [current]
