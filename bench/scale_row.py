"""One row of `bench.scale`, in each of its processes: write random models, or train and measure."""

import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.random_run import DEVICE, GIB
from bench.scale_models import prepare

PEAK = 989e12  # FLOP/s of an H100 or H200 in bf16, dense
WARM_UP = 4  # steps: compilation, DDP's buckets, CUDA graphs


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: do not outlive a torchrun that was killed
    job = json.loads(sys.argv[1])
    # Just before its time is up, a row that hangs writes its stacks to its log. Not earlier: the other threads keep
    # running during a dump, which can crash the process.
    faulthandler.dump_traceback_later(max(1, job["limit"] - since_start() - 10), exit=True)
    folder = Path(job["folder"])
    if "prepare" in job:
        result = prepare(folder, job["prepare"])
    else:
        result = train(folder, job["row"], job["name"], job.get("resume"))
    if int(os.environ["RANK"]) == 0:
        (folder / "results" / f"{job['name']}.json").write_text(json.dumps(result))


def parameters(folder: Path, row: dict[str, Any], name: str, resume: str | None) -> Any:
    from qwen3llada.training.params import PretrainParams

    ranks = int(os.environ["WORLD_SIZE"])
    samples = row["samples"] or ranks * row["rows"]
    return PretrainParams.model_validate(
        {
            "model": folder / row["size"],
            "data": folder / row["size"] / "data",
            "output_dir": folder / "runs" / name,
            "dst": folder / "runs" / f"{name}-model",
            "reports": folder / "runs" / f"{name}-reports",
            "max_steps": WARM_UP + row["steps"] + 2,
            "micro_batch_size": row["rows"],
            "gradient_accumulation_steps": samples // (ranks * row["rows"]),
            "max_length": row["length"],
            "attention": {"policy": row["policy"], "block_length": 32},
            "gradient_checkpointing": row["checkpointing"],
            "do_eval_loss": False,
            "resume_from": resume or "",
            "num_workers": 2 if DEVICE.type == "cuda" else 0,
            "bf16": DEVICE.type == "cuda",
            "deterministic": False,
            "logging_steps": 1000,
            "noise": {"random_length_prob": 0.0},
        }
    )


def train(folder: Path, row: dict[str, Any], name: str, resume: str | None) -> dict[str, Any]:
    """Take the steps, and measure. The result holds every rank's peak of memory, and rank 0's times."""
    if row["strategy"] == "fsdp2":
        let_fsdp2_start(row["gathered"])
    from accelerate.utils import gather_object

    from qwen3llada.training.loop import training_steps
    from qwen3llada.training.start.start import start
    from qwen3llada.training.stopping import StopRequest
    from qwen3llada.training.watch.monitor import Monitor

    times = {"imports_s": since_start()}
    params = parameters(folder, row, name, resume)
    run, stop = start(params, seed=0, template="plain"), StopRequest()
    times["started_s"] = since_start()
    monitor, results, marks, saved, saving = Monitor(run, stop), [], {}, {}, 0.0
    last_timed = WARM_UP + row["steps"]
    for result in training_steps(run, stop):
        monitor.take(result)
        results.append(result)
        if len(results) == 1:
            monitor.flush()
            times["first_step_s"] = since_start()
        if result.step in (WARM_UP, last_timed):
            monitor.flush()
            monitor.peak_memory.read()  # after the graphs' recording, from when on their memory counts
            marks[result.step] = time.perf_counter()
        if result.step == last_timed and row["checkpoint"] and not resume:
            saved = begin_save(run, monitor)
            saving = time.perf_counter()
        if result.step == last_timed and not row["checkpoint"]:
            break
    monitor.flush()
    if saved:
        saved["step_while_saving_s"] = round((time.perf_counter() - saving) / 2, 3)
        saved = end_save(run, saved)
    outcome = {"row": name} | described(run, row) | times | computed(results) | saved
    if not resume:
        outcome |= speed(results, marks, run.accelerator.num_processes)
    outcome["peak_gib"] = gather_object([round(monitor.peak_memory.read() / GIB, 2)])
    if DEVICE.type == "cuda":
        outcome["reserved_gib"] = gather_object([round(torch.cuda.max_memory_reserved() / GIB, 2)])
    run.accelerator.end_training()
    return outcome


def described(run: Any, row: dict[str, Any]) -> dict[str, Any]:
    """How the run was divided, and what it was estimated to take."""
    return {
        "gpus": run.accelerator.num_processes,
        "strategy": row["strategy"],
        "policy": row["policy"],
        "accumulation": run.params.gradient_accumulation_steps,
        "plan": str(run.sharded.plan) if run.sharded else None,
        "estimated_gib": round(run.memory.total / GIB, 2),
        "estimate": str(run.memory),
        "largest_micro_batch": run.memory.largest,
    }


def computed(results: list[Any]) -> dict[str, list[float]]:
    """Loss and gradient norm of each step."""
    values = [result.read() for result in results]
    return {"losses": [value.loss for value in values], "grad_norms": [value.grad_norm for value in values]}


def speed(results: list[Any], marks: dict[int, float], processes: int) -> dict[str, Any]:
    """Rates over the timed steps."""
    first, last = min(marks), max(marks)
    timed = [result for result in results if first < result.step <= last]
    seconds = marks[last] - marks[first]
    flops = sum(result.flops for result in timed) * processes
    return {
        "tokens_per_s": round(sum(result.tokens for result in timed) / seconds),
        "step_s": round(seconds / len(timed), 4),
        "utilisation": round(flops / seconds / (PEAK * processes), 4),
    }


def begin_save(run: Any, monitor: Any) -> dict[str, Any]:
    """Save. Under FSDP2 the writing goes on while further steps are taken."""
    from qwen3llada.training.checkpoints.save_and_restore import save

    began, wall = time.perf_counter(), time.time()
    with monitor.pause():
        save(run, monitor.points)
    return {"save_blocking_s": round(time.perf_counter() - began, 2), "began": wall}


def end_save(run: Any, saved: dict[str, Any]) -> dict[str, Any]:
    """Wait until the checkpoint is whole: from then on its folder has its name, as its change time says."""
    from qwen3llada.training.checkpoints.save_and_restore import finish_saving

    finish_saving(run)
    checkpoint = run.last_checkpoint
    size = sum(p.stat().st_size for p in checkpoint.rglob("*") if p.is_file())
    whole = checkpoint.stat().st_ctime - saved.pop("began")
    if run.shard_writer is not None:  # the first copy allocates pinned memory, later ones have it
        from qwen3llada.training.checkpoints.shards import weights
        from qwen3llada.training.checkpoints.whole_tensors import optimizer_shards

        tensors = weights(run.model) | optimizer_shards(run.inner_optimizer, run.model)[1]
        began = time.perf_counter()
        run.shard_writer.stager.stage(tensors)
        saved["copy_to_host_again_s"] = round(time.perf_counter() - began, 2)
    return saved | {
        "save_whole_s": round(whole, 2),
        "checkpoint_gb": round(size / 1e9, 2),
        "checkpoint": str(checkpoint),
    }


def let_fsdp2_start(gathered: bool | None) -> None:
    """Without GPUs Accelerate would refuse FSDP, which torch runs on CPUs as well. `gathered`: not as estimated."""
    if DEVICE.type != "cuda":
        from accelerate.state import PartialState
        from accelerate.utils import DistributedType

        os.environ["ACCELERATE_USE_CPU"] = "true"
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    if gathered is not None:
        from qwen3llada.training.start import start
        from qwen3llada.training.start.sharding import ShardingPlan

        start.choose_plan = lambda *args, **options: ShardingPlan(gathered=gathered, sums_locally=False)  # type: ignore


def since_start() -> float:
    """Seconds since `bench.scale` started this row."""
    return round(time.time() - float(os.environ["SCALE_BEGAN"]), 2)


if __name__ == "__main__":
    main()
