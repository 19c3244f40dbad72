"""The optimiser step: ours compared with the plain one on the same weights and data, in one process.

    python -m bench.train                       a GPU: Qwen3-0.6B shapes at 16×1024 and 8×4096; a CPU: a tiny model
    python -m bench.train --only default plain  some of the candidates
    python -m bench.train --only plain "plain blocks" default block_causal "two views" "sft full" "sft block_causal"
    python -m bench.train --profile NAME        where the time of the step of a candidate goes
    python -m bench.train --config FOLDER/config.json      the shapes of another Qwen3 model

The plain step is that of the published training scripts for this model family: an eager model, a dense additive
attention mask, float32 logits at all positions, cross-entropy at the masked ones, AdamW on bf16 weights. Ours is
`optimiser_step` of the trainer with its own loader; "whole loop" adds telemetry.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from bench.fp8 import in_8_bits
from bench.measure import synchronize
from bench.plain_training import plain_step
from bench.random_run import DEVICE, GIB, QWEN3_0_6B, TINY, clean, write_data, write_model
from qwen3llada.training.loop import optimiser_step, training_steps
from qwen3llada.training.params import PretrainParams, SftParams, TrainParams
from qwen3llada.training.run import Run
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest
from qwen3llada.training.watch.monitor import Monitor
from qwen3llada.training.watch.peak_memory import PeakMemory

FUSED = "qwen3llada.training.cuda.fused_attention"
WARMUP, BLOCKS, BLOCK_STEPS, LOOP_STEPS = 4, 4, 10, 40

BLOCKS_OF_32 = {"policy": "block_causal", "block_length": 32}
PLAIN = {"plain": 0, "plain blocks": 32}  # name -> block length of the published recipe, 0: full attention
# Candidates, by their differences from the default parameters.
OURS: dict[str, dict[str, Any]] = {
    "default": {"bf16": DEVICE.type == "cuda"},
    "bf16 weights": {"bf16": True, "param_dtype": "bfloat16"},
    "not compiled": {"bf16": DEVICE.type == "cuda", "compile": "never"},
    "no CUDA graphs": {"bf16": True, "cuda_graphs": "never"},
    "Qwen3's attention": {"bf16": DEVICE.type == "cuda"},
    "deterministic": {"bf16": True, "deterministic": True},
    "checkpointing": {"bf16": True, "gradient_checkpointing": True},
    "adamw8bit": {"bf16": True, "optim": {"name": "adamw8bit"}},
    "lion8bit": {"bf16": True, "optim": {"name": "lion8bit"}},
    "random lengths": {"bf16": DEVICE.type == "cuda", "noise": {"random_length_prob": 0.01}},
    "block_causal": {"bf16": DEVICE.type == "cuda", "attention": BLOCKS_OF_32},
    "default fa4": {"bf16": True, "attention": {"implementation": "flash_attention_4"}},
    "block_causal fa4": {"bf16": True, "attention": BLOCKS_OF_32 | {"implementation": "flash_attention_4"}},
    "blocks of 4": {"bf16": DEVICE.type == "cuda", "attention": {"policy": "block_causal", "block_length": 4}},
    "default fp8": {"bf16": DEVICE.type == "cuda"},  # bench/fp8.py
    "block_causal fp8": {"bf16": DEVICE.type == "cuda", "attention": BLOCKS_OF_32},
    "two views": {
        "bf16": DEVICE.type == "cuda",
        "attention": BLOCKS_OF_32,
        "noise": {"random_length_prob": 0.0, "views": 2},
    },
    "sft full": {"bf16": DEVICE.type == "cuda"},
    "sft block_causal": {"bf16": DEVICE.type == "cuda", "attention": BLOCKS_OF_32},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["plain", "default", "bf16 weights", "whole loop"])
    parser.add_argument("--shapes", nargs="*", default=["16x1024", "8x4096"] if DEVICE.type == "cuda" else ["32x64"])
    parser.add_argument("--config", type=Path, help="config.json of a Qwen3 model whose shapes to take instead")
    parser.add_argument("--profile", metavar="NAME", choices=OURS, help="print the kernels of this candidate by time")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no candidate after this time")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    began, results = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        config = QWEN3_0_6B if DEVICE.type == "cuda" else TINY
        if args.config:
            given = json.loads(args.config.read_text())
            config = {name: given[name] for name in (*config, "attention_bias") if name in given}
        write_model(Path(folder), config)
        for shape in args.shapes:
            rows, length = map(int, shape.split("x"))
            write_data(Path(folder), config, (WARMUP + LOOP_STEPS) * rows, length)
            write_data(Path(folder), config, (WARMUP + LOOP_STEPS) * rows, length, prompts="sft")
            for name in args.only:
                if time.perf_counter() - began > args.seconds:
                    print(f"{shape} {name}: left out, {args.seconds:.0f} s are over", flush=True)
                    continue
                result = {"shape": shape, "name": name} | attempt(Path(folder), name, rows, length)
                results.append(result)
                show(result, results, rows * length)
            if args.profile:
                profile(Path(folder), args.profile, rows, length)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


def attempt(folder: Path, name: str, rows: int, length: int) -> dict[str, Any]:
    """Seconds per step and peak memory of one candidate, or its error."""
    clean()
    try:
        if name in PLAIN:
            return measure(plain_step(folder, rows, length, block_length=PLAIN[name]), PeakMemory(DEVICE))
        if name == "whole loop":
            return whole_loop(folder, rows, length)
        with ours(folder, name, rows, length) as run:
            batches = cycle(list(islice(run.data.steps(epoch=0), 8)))
            stop = StopRequest()
            return measure(lambda: optimiser_step(run, next(batches), stop), PeakMemory(DEVICE, run.graphs))
    except (torch.OutOfMemoryError, RuntimeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}


def measure(step: Callable[[], Any], peak: PeakMemory) -> dict[str, Any]:
    """Seconds per step after warm-up as the median over blocks of steps, and peak memory.

    Waits for the device after each block. In training a block corresponds to the steps between points of the curves.
    """
    began = time.perf_counter()
    for _ in range(WARMUP):
        step()
    synchronize(DEVICE)
    peak.read()  # accounts for graphs captured so far
    warm = time.perf_counter() - began
    times = []
    for _ in range(BLOCKS):
        start_time = time.perf_counter()
        for _ in range(BLOCK_STEPS):
            step()
        synchronize(DEVICE)
        times.append((time.perf_counter() - start_time) / BLOCK_STEPS)
    return {"seconds": float(np.median(times)), "fastest": min(times), "peak": peak.read(), "warm_up": warm}


def whole_loop(folder: Path, rows: int, length: int) -> dict[str, Any]:
    """Seconds per step of the loop in `train`, including loader, noise and telemetry."""
    with ours(folder, "default", rows, length) as run:
        run.total_steps = WARMUP + LOOP_STEPS
        stop = StopRequest()
        monitor, seconds = Monitor(run, stop), {0: time.perf_counter()}
        for result in training_steps(run, stop):
            monitor.take(result)
            if result.step in (WARMUP, run.total_steps):  # the last one before the loader's workers end
                monitor.flush()
                peak = monitor.peak_memory.read()  # first after the graphs' recording, from when on their memory counts
                seconds[result.step] = time.perf_counter()
        utilisation = monitor.finish()["mfu"]
        per_step = (seconds[run.total_steps] - seconds[WARMUP]) / LOOP_STEPS
        return {"seconds": per_step, "peak": peak, "warm_up": seconds[WARMUP] - seconds[0], "mfu": utilisation}


@contextmanager
def ours(folder: Path, name: str, rows: int, length: int) -> Iterator[Run]:
    """A training run with a candidate's changes."""
    changes = {"deterministic": False, "noise": {"random_length_prob": 0.0}} | OURS[name]
    sft = name.startswith("sft")
    section: type[TrainParams] = SftParams if sft else PretrainParams
    params = section.model_validate(
        {
            "model": folder / "model",
            "data": folder / ("sft" if sft else "data"),
            "output_dir": folder / "work",
            "reports": folder / "reports",
            "max_steps": 1000,
            "micro_batch_size": rows,
            "max_length": length,
            "do_eval_loss": False,
            "resume_from": "",
            "num_workers": 2 if DEVICE.type == "cuda" else 0,
            **changes,
        }
    )
    contexts = {"Qwen3's attention": patch(f"{FUSED}.fuse_attention", lambda model, **options: None)}
    with in_8_bits() if name.endswith("fp8") else contexts.get(name, nullcontext()):
        run = start(params, seed=0, template="plain")
    run.objective.train()
    yield run


def profile(folder: Path, name: str, rows: int, length: int) -> None:
    """Print the kernels of our step, most expensive first."""
    with ours(folder, name, rows, length) as run:
        batches, stop = cycle(list(islice(run.data.steps(epoch=0), 8))), StopRequest()
        for _ in range(WARMUP):
            optimiser_step(run, next(batches), stop)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if DEVICE.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(3):
                optimiser_step(run, next(batches), stop)
            synchronize(DEVICE)
        key = "self_cuda_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=key, row_limit=60, max_name_column_width=90)
        print(f"3 steps at {rows}x{length}\n{table}", flush=True)
    clean()


def rival(name: str) -> str:
    """The published recipe to compare a candidate with."""
    return "plain blocks" if "policy" in OURS.get(name, {}).get("attention", {}) else "plain"


def show(result: dict[str, Any], results: list[dict[str, Any]], tokens: int) -> None:
    head = f"{result['shape']:>8} {result['name']:16}"
    if "error" in result:
        print(f"{head} {result['error']}", flush=True)
        return
    plain = [
        r for r in results if r["name"] == rival(result["name"]) and r["shape"] == result["shape"] and "seconds" in r
    ]
    ratio = f"{plain[0]['seconds'] / result['seconds']:6.2f}x plain" if plain else ""
    print(
        f"{head} {result['seconds'] * 1e3:8.1f} ms {tokens / result['seconds']:9,.0f} tokens/s"
        f" {result['peak'] / GIB:6.1f} GiB {ratio}  warm-up {result['warm_up']:.1f} s"
        + (f"  MFU {result['mfu']}" if result.get("mfu") else ""),
        flush=True,
    )


if __name__ == "__main__":
    main()
