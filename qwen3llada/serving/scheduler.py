"""The queue of answers that are wanted, and the one thread that runs the model."""

import threading
from collections import deque
from collections.abc import Iterable

from qwen3llada.errors import InputError
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.serving.engine import Engine
from qwen3llada.serving.jobs import Job
from qwen3llada.serving.metrics import Metrics

STOPPING = "the server is stopping"


class Busy(InputError):
    """More answers would wait than `max_queue`."""


class Stopping(InputError):
    """The server takes no more requests."""


class Scheduler:
    """Takes jobs from any thread, and decodes them in its own. Jobs start between any two passes."""

    def __init__(self, text: TextModel, *, max_batch: int, max_queue: int, metrics: Metrics | None = None) -> None:
        self.max_queue, self.metrics = max_queue, metrics or Metrics()
        self.engine = Engine(text, max_batch=max_batch, metrics=self.metrics)
        self._waiting: deque[Job] = deque()
        self._wanted: set[Job] = set()  # of the requests that are not answered yet
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def refuse(self) -> None:
        """Take no more requests. What still waits gets an error; the answers that run are finished."""
        with self._changed:
            self._stopping = True
            waiting = [*self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for job in waiting:
            job.fail(STOPPING, 503)

    def give_up(self) -> None:
        """The answers that still run get an error."""
        with self._changed:
            wanted = [*self._wanted]
        for job in wanted:
            job.fail(STOPPING, 503)

    def stop(self) -> None:
        """End the thread when the answers that run are finished; what still waits gets an error."""
        self.refuse()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def decoding(self) -> int:
        """Answers that are being decoded."""
        return self.engine.running

    @property
    def wanted(self) -> int:
        """Answers of the requests that are not answered yet."""
        return len(self._wanted)

    @property
    def running(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def submit(self, jobs: list[Job]) -> None:
        """Queue all jobs of a request, or none. Raises Busy or Stopping."""
        with self._changed:
            if self._stopping:
                raise Stopping(STOPPING)
            if len(self._waiting) + len(jobs) > self.max_queue:
                raise Busy(f"{len(self._waiting)} answers wait, at most {self.max_queue} may; try again later")
            self._waiting.extend(jobs)
            self._wanted.update(jobs)
            self._changed.notify_all()

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Nobody waits for these any more: they are not started, or leave before the next pass."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
                self._wanted.discard(job)
                if job in self._waiting:
                    self._waiting.remove(job)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting or self.engine.busy)
                if self._stopping and not self.engine.busy:
                    return
                jobs = [] if self._stopping else self.engine.take(self._waiting)
            self.engine.start(jobs)
            self.engine.step()
