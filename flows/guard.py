"""Runs one dvc command so that it always ends cleanly: `python -m flows.guard -- dvc repro …`.

dvc must never be signalled: killed while working, it orphans the trainer and can leave a partial `dvc.lock`. So dvc is
started with SIGTERM, SIGINT and SIGHUP ignored. On one of these signals, or when its standard input ends (its owner is
gone), the guard instead stops the processes that dvc runs. They save their state, and then dvc ends by itself. If dvc
itself is killed, the guard inherits its children, stops them in the same way, and repairs dvc's files.

Exit status: dvc's own; 124 after `--timeout`; 128 + signal if dvc was killed; 143 if the guard was told to stop.
"""

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

import psutil

from flows import dvcfiles
from flows.processes import adopt_orphans, ask_to_stop, descendants, kill_all_but_dvc

TIMED_OUT = 124  # same as timeout(1)
TOLD_TO_STOP = 128 + signal.SIGTERM
STOPPERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POLL_SECONDS = 0.2


class Guard:
    """One dvc command: forwards its output and watches the processes below it."""

    def __init__(self, command: list[str], timeout: float, grace: float) -> None:
        self.command, self.timeout, self.grace = command, timeout, grace
        self.reason: int | None = None  # exit status, set when stopping
        self.stopping_since = 0.0
        self.asked: set[int] = set()

    def run(self) -> int:
        """Run until every process below has ended. Returns the exit status."""
        adopt_orphans()
        for signum in STOPPERS:
            signal.signal(signum, self._on_signal)
        for line in dvcfiles.repair():
            self._say(line)
        dvcfiles.back_up()
        self.dvc = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=_ignore
        )
        self._watch()
        status = self.dvc.wait()
        if status < 0:
            self._say(f"dvc was killed by signal {-status}")
            for line in dvcfiles.after_killed_dvc():
                self._say(line)
            status = 128 - status
        return status if self.reason is None else self.reason

    def _watch(self) -> None:
        """Forward output, and watch owner, time limit and dvc, until dvc and all processes below it have ended."""
        assert self.dvc.stdout is not None
        started, output, inputs = time.monotonic(), self.dvc.stdout.fileno(), {self.dvc.stdout.fileno(), 0}
        while True:
            ready, _, _ = select.select(inputs, [], [], POLL_SECONDS)
            if output in ready and not self._forward(output):
                inputs.discard(output)
            if 0 in ready and not os.read(0, 4096):
                inputs.discard(0)
                self._stop(TOLD_TO_STOP, "the run has stopped or is gone")
            if self.timeout and time.monotonic() - started > self.timeout:
                self._stop(TIMED_OUT, f"the time limit of {self.timeout:g} s has passed")
            ended = self.dvc.poll() is not None
            if self.reason is not None or ended:
                alive = descendants({self.dvc.pid})
                if ended and not alive:
                    break
                self._stop_below(alive)
        while output in inputs and select.select([output], [], [], 0)[0] and self._forward(output):
            pass

    def _stop(self, reason: int, why: str) -> None:
        if self.reason is None:
            self.reason = reason
            self._say(f"{why}: stopping the stage")

    def _stop_below(self, alive: list[psutil.Process]) -> None:
        self.stopping_since = self.stopping_since or time.monotonic()
        if time.monotonic() - self.stopping_since < self.grace:
            ask_to_stop(alive, self.asked)
        else:
            kill_all_but_dvc(alive)

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        self._stop(TOLD_TO_STOP, signal.Signals(signum).name)

    def _forward(self, output: int) -> bool:
        """Forward dvc's output; False at its end. If the reader is gone, the trainer must still be able to write."""
        data = os.read(output, 65536)
        self._write(data)
        return bool(data)

    def _say(self, text: str) -> None:
        self._write(f"guard: {text}\n".encode())

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(1, data) :]
        except BrokenPipeError:
            pass  # the reader is gone; the end of standard input will tell why


def _ignore() -> None:
    """Runs in the child: ignored signals stay ignored after exec, so dvc survives signals to the whole group."""
    for signum in STOPPERS:
        signal.signal(signum, signal.SIG_IGN)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.guard", description="Run one dvc command under guard.")
    parser.add_argument("--timeout", type=float, default=0, help="seconds after which the stage is stopped; 0: never")
    parser.add_argument("--grace", type=float, default=60, help="seconds that a stage gets to save and end")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    return Guard(args.command, args.timeout, args.grace).run()


if __name__ == "__main__":
    sys.exit(main())
