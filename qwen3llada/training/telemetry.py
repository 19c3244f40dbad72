"""What a run reports: curves through DVCLive (or a file where it is not installed), speed, and a progress bar."""

import importlib.util
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import full_disk_named, write_json

SUMMARY = "summary.json"
TERMINAL_REFRESH = 0.5  # seconds between two states of the progress bar on a terminal,
LOG_REFRESH = 30.0  # and in a log, where each state is a line


class Curves:
    """Points of named curves over the optimiser step.

    All points are kept (a few hundred bytes each) and travel in the checkpoints: a resumed run writes the curves anew
    from the checkpoint's points, so no step is missing or there twice, whatever a killed run had written after it.
    """

    def __init__(self, folder: Path, points: Iterable[dict[str, Any]] = ()):
        self.folder = folder
        self.points: list[dict[str, Any]] = []
        self._file = folder / "metrics.jsonl"
        with full_disk_named(folder / "plots"):
            # A file of an earlier run may be hard-linked into DVC's cache, so it is removed and not written to again.
            # DVCLive does the same with its own.
            for old in (self._file, folder / SUMMARY):
                old.unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            self._live = _dvclive(folder)
            self.writer = "dvclive" if self._live else self._file.name
            for point in points:
                self._write(point)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Append one point to each curve in `values`; names with a slash are grouped in folders."""
        with full_disk_named(self.folder / "plots"):
            self._write({"step": step, **values})
            if self._live:
                self._live.make_summary()

    def close(self) -> None:
        if self._live:
            with full_disk_named(self.folder / "plots"):
                self._live.end()

    def _write(self, point: dict[str, Any]) -> None:
        self.points.append(point)
        if self._live:
            self._live.step = point["step"]
            for name, value in point.items():
                if name != "step":
                    self._live.log_metric(name, value)
        else:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(json.dumps(point) + "\n")


class Speed:
    """Tokens and floating-point operations per second over windows of steps, pauses left out."""

    def __init__(self, total: Mapping[str, float] | None = None) -> None:
        """`total`: what `so_far` gave, of the same run before it was resumed."""
        self._start = time.perf_counter()
        self._paused = 0.0
        self._window = {"tokens": 0.0, "flops": 0.0}
        self.total = {"tokens": 0.0, "flops": 0.0, "seconds": 0.0, **(total or {})}

    def count(self, tokens: float, flops: float) -> None:
        self._window["tokens"] += tokens
        self._window["flops"] += flops

    def pause(self, since: float) -> None:
        """Leave out the time from `since` (of `time.perf_counter`) to now, spent on an evaluation or a checkpoint."""
        self._paused += time.perf_counter() - since

    def window(self) -> tuple[float, float]:
        """(tokens/s, FLOP/s) since the last call."""
        seconds = self._seconds()
        rates = self._window["tokens"] / seconds, self._window["flops"] / seconds
        self.total = self.so_far()
        self._start, self._paused, self._window = time.perf_counter(), 0.0, {"tokens": 0.0, "flops": 0.0}
        return rates

    def so_far(self) -> dict[str, float]:
        """Tokens, operations and seconds of the run, the window that is open included."""
        window = self._window | {"seconds": self._seconds()}
        return {name: value + window[name] for name, value in self.total.items()}

    def _seconds(self) -> float:
        return max(time.perf_counter() - self._start - self._paused, 1e-9)


def progress_bar(total: int, done: int, *, name: str, shown: bool) -> Any:
    """A bar over optimiser steps that tells the remaining time; in a log it prints a line now and then."""
    from tqdm import tqdm

    refresh = TERMINAL_REFRESH if sys.stderr.isatty() else LOG_REFRESH
    return tqdm(
        total=total, initial=done, desc=name, unit="step", disable=not shown, mininterval=refresh, dynamic_ncols=True
    )


def write_summary(folder: Path, values: dict[str, Any]) -> None:
    """The run in one JSON file, a metric for DVC."""
    write_json(folder / SUMMARY, values)


def _dvclive(folder: Path) -> Any:
    if importlib.util.find_spec("dvclive") is None:
        return None
    from dvclive import Live

    # The stage declares its outputs in dvc.yaml itself, and saving experiments is up to `dvc exp run`.
    return Live(str(folder), save_dvc_exp=False, dvcyaml=False, report=None)
