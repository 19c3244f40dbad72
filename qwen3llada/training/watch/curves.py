"""Reports of a run: curves through DVCLive (or a file if it is not installed), speed, and a progress bar.

Results that depend only on code, parameters and data go to plots/ and summary.json, which DVC tracks: the same run
writes the same bytes, interrupted or not. Results that depend on the machine go to speed.json and speed.jsonl, which
DVC does not track.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import file_digest, full_disk_named, remove_unfinished, write_json

SUMMARY = "summary.json"
SPEED = "speed.json"
SPEED_CURVES = "speed.jsonl"
MACHINE_CURVES = frozenset(
    {"train/tokens_per_second", "train/peak_memory_gib", "train/mfu", "train/rollout_seconds"}
)  # never in plots/
TERMINAL_REFRESH = 0.5  # seconds between updates of the progress bar on a terminal
LOG_REFRESH = 30.0  # and in a log, where each update is a line


class Curves:
    """Named curves over the optimiser step.

    All points stay in memory (a few hundred bytes each) and are saved in checkpoints. A resumed run rewrites the curves
    from the checkpoint's points, so no step is missing or doubled, whatever a killed run wrote after its checkpoint.
    `MACHINE_CURVES` are written to speed.jsonl, all others to plots/.
    """

    def __init__(self, folder: Path, points: Iterable[dict[str, Any]] = ()):
        self.folder = folder
        self.points: list[dict[str, Any]] = []
        self._file = folder / "metrics.jsonl"
        self._speed_file = folder / SPEED_CURVES
        with full_disk_named(folder / "plots"):
            # An earlier run's file may be a hard link into DVC's cache, so it is removed instead of overwritten.
            # DVCLive does the same with its own files.
            for old in (self._file, folder / SUMMARY, self._speed_file, folder / SPEED):
                old.unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)
            self._live = _dvclive(folder)
            self.writer = "dvclive" if self._live else self._file.name
            for point in points:
                self._write(point)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Append one point to each curve in `values`. A slash in a name makes a folder."""
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
        step = {"step": point["step"]}
        values = {name: value for name, value in point.items() if name not in MACHINE_CURVES | {"step"}}
        measured = {name: value for name, value in point.items() if name in MACHINE_CURVES}
        if measured:
            _append(self._speed_file, step | measured)
        if self._live:
            self._live.step = point["step"]
            for name, value in values.items():
                self._live.log_metric(name, value)
        elif values:
            _append(self._file, step | values)


class Speed:
    """Tokens and FLOPs per second over windows of steps, without pauses."""

    def __init__(self, total: Mapping[str, float] | None = None) -> None:
        """`total`: result of `so_far` from before the run was resumed."""
        self._start = time.perf_counter()
        self._paused = 0.0
        self._window = {"tokens": 0.0, "flops": 0.0}
        self.total = {"tokens": 0.0, "flops": 0.0, "seconds": 0.0, **(total or {})}

    def count(self, tokens: float, flops: float) -> None:
        self._window["tokens"] += tokens
        self._window["flops"] += flops

    def pause(self, since: float) -> None:
        """Exclude the time from `since` (of `time.perf_counter`) until now: an evaluation or a checkpoint."""
        self._paused += time.perf_counter() - since

    def window(self) -> tuple[float, float]:
        """(tokens/s, FLOP/s) since the last call. Starts a new window."""
        seconds = self._seconds()
        rates = self._window["tokens"] / seconds, self._window["flops"] / seconds
        self.total = self.so_far()
        self._start, self._paused, self._window = time.perf_counter(), 0.0, {"tokens": 0.0, "flops": 0.0}
        return rates

    def so_far(self) -> dict[str, float]:
        """Tokens, FLOPs and seconds of the run, including the current window."""
        window = self._window | {"seconds": self._seconds()}
        return {name: value + window[name] for name, value in self.total.items()}

    def _seconds(self) -> float:
        return max(time.perf_counter() - self._start - self._paused, 1e-9)


def progress_bar(total: int, done: int, *, name: str, shown: bool) -> Any:
    """A progress bar over optimiser steps with the remaining time. In a log it prints a line now and then."""
    from tqdm import tqdm

    refresh = TERMINAL_REFRESH if sys.stderr.isatty() else LOG_REFRESH
    return tqdm(
        total=total, initial=done, desc=name, unit="step", disable=not shown, mininterval=refresh, dynamic_ncols=True
    )


def write_summary(folder: Path, outcome: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Write the outcome of a run to summary.json, and machine-dependent measurements to speed.json.

    speed.json holds the digest of its summary (`of`), because DVC may replace the summary but never speed.json.
    """
    write_json(folder / SUMMARY, outcome)
    write_json(folder / SPEED, {"of": file_digest(folder / SUMMARY), **measured})


def _append(path: Path, point: Mapping[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(point) + "\n")


def _dvclive(folder: Path) -> Any:
    if importlib.util.find_spec("dvclive") is None:
        return None
    from dvclive import Live

    # dvc.yaml declares the stage's outputs, and `dvc exp run` saves experiments.
    return Live(str(folder), save_dvc_exp=False, dvcyaml=False, report=None)
