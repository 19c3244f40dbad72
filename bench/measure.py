"""Timing and peak memory for comparisons: all candidates run in one process and take turns."""

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

MIB = 2**20


def synchronize(device: torch.device) -> None:
    """Wait for the device. Nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Time of one call: by CUDA events on a GPU, else by the host's clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def take_turns(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, *, warmup: int = 2, repeats: int = 7
) -> dict[str, float]:
    """Median seconds of each call. A round runs each call once, so that a slow moment of the machine affects all."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    synchronize(device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return {name: statistics.median(values) for name, values in times.items()}


def cuda_peak(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes in tensors during the call, including its inputs and everything else alive."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def cpu_peak(function: Callable[..., Any], *arguments: Any) -> int:
    """Most bytes that `function(*arguments)` adds to a fresh process, including inputs that it makes.

    `function` must belong to a module, which the process imports first (not counted). Needs Linux's /proc.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_growth, (function, arguments))


def _peak_growth(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the current resident size
    before = _status("VmRSS")
    function(*arguments)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{field=} must be in /proc/self/status")


def print_ratios(
    title: str, times: Mapping[str, float], peaks: Mapping[str, int | None], baseline: str, notes: Mapping[str, str]
) -> None:
    """Print a table: time and peak of each candidate, and ratios to the baseline."""
    print(f"\n{title}\n  {'':34} {'ms':>9} {'faster':>8} {'peak MiB':>9} {'of plain':>8}")
    for name, value in times.items():
        peak, reference = peaks.get(name), peaks.get(baseline)
        memory = f"{peak / MIB:9.0f} {peak / reference:8.3f}" if peak and reference else f"{'-':>9} {'-':>8}"
        print(
            f"  {name:34} {value * 1e3:9.2f} {times[baseline] / value:7.2f}x {memory}  {notes.get(name, '')}",
            flush=True,
        )
