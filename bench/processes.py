"""Parts of a benchmark in fresh processes: time, and memory of all processes that they start."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

MB = 10**6
SECONDS_BETWEEN_LOOKS = 0.2


class Clock:
    """Wall time since `start`, and processor time of this process and its finished children since then."""

    begin = used = 0.0

    def start(self) -> None:
        """Start both clocks."""
        self.begin, self.used = time.perf_counter(), self._processor()

    def read(self) -> dict[str, float]:
        """Both times in seconds."""
        return {"seconds": time.perf_counter() - self.begin, "processor": self._processor() - self.used}

    @staticmethod
    def _processor() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system


def measure(module: str, part: str, folder: Path, processes: int) -> dict[str, float]:
    """The last line printed by `python -m MODULE --part PART` (seconds, processor, count), and `peak` bytes.

    The peak is PSS over all its processes, so shared memory counts once.
    """
    import psutil

    environment = os.environ | {
        "RAYON_NUM_THREADS": str(processes),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
    command = [sys.executable, "-m", module, "--part", part, "--folder", str(folder), "--processes", str(processes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True) as child:
        peak, done = [0], threading.Event()
        watch = threading.Thread(target=_watch, args=(psutil.Process(child.pid), peak, done))
        watch.start()
        output, errors = child.communicate()
        done.set()
        watch.join()
    if child.returncode:
        raise SystemExit(f"{part}: {errors[-2000:]}")
    return json.loads(output.splitlines()[-1]) | {"peak": peak[0]}


def _watch(process: Any, peak: list[int], done: threading.Event) -> None:
    import psutil

    while not done.wait(SECONDS_BETWEEN_LOOKS):
        total = 0
        for one in [process, *_children(process)]:
            with contextlib.suppress(psutil.Error, OSError):  # the process has just ended
                total += one.memory_full_info().pss
        peak[0] = max(peak[0], total)


def _children(process: Any) -> list[Any]:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []
