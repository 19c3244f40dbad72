"""Whole training runs in separate processes, and their results."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from qwen3llada.training.checkpoints.folder import checkpoints, step_of
from qwen3llada.training.checkpoints.save_and_restore import save
from qwen3llada.training.loop import evaluate, train, training_steps
from qwen3llada.training.params import TrainParams
from qwen3llada.training.start.claiming import claim_destinations
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest
from qwen3llada.training.watch.monitor import Monitor

# A fork has everything imported already. This is safe while parent and child compute with one thread (conftest.py).
CONTEXT = multiprocessing.get_context("fork")
SEED = 1
UNREPEATABLE = ("tokens_per_second", "peak_memory_gib", "mfu")  # curves that differ from run to run


def start_process(work: Callable[..., None], *args: Any) -> Any:
    """Start a process that runs `work`."""
    process = CONTEXT.Process(target=_run, args=(work, *args))
    process.start()
    return process


def _run(work: Callable[..., None], *args: Any) -> None:
    # The first call recreates threads lost in a fork. torch aborts if two threads recreate them at once.
    torch.set_num_threads(torch.get_num_threads())
    work(*args)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_together(processes: int, work: Callable[..., None], *args: Any) -> None:
    """Run `work(rank, *args)` in each of `processes` processes. Raises if one of them fails."""
    group = [start_process(work, rank, *args) for rank in range(processes)]
    for process in group:
        process.join()
    assert [process.exitcode for process in group] == [0] * processes


def run_training(params: TrainParams) -> None:
    """Train in this process, as leader of its own process group."""
    os.setsid()
    train(params, seed=SEED)


def start_training(params: TrainParams) -> Any:
    return start_process(run_training, params)


def changed(params: TrainParams, **changes: Any) -> Any:
    return type(params).model_validate(params.model_dump() | changes)


def elsewhere(params, folder, **changes):
    """The same training with its outputs in `folder`."""
    paths = {"dst": folder / "model", "output_dir": folder / "work", "reports": folder / "reports"}
    return changed(params, **paths, **changes)


def leave_after(params, step):
    """Take `steps` steps, save, and write nothing else."""
    run = start(params, seed=1, template="plain")
    claim_destinations(params, run.accelerator, started=True)
    monitor = Monitor(run, StopRequest())
    for result in training_steps(run, StopRequest()):
        monitor.take(result)
        if result.step % params.eval_every_steps == 0:
            with monitor.pause():
                monitor.evaluated(*evaluate(run))
        if result.step == step:
            with monitor.pause():
                run.state.telemetry = monitor.state()
                save(run, monitor.points)
            return


def weights(params: TrainParams) -> dict[str, torch.Tensor]:
    return load_file(params.dst / "model.safetensors")


def checkpoint(params: TrainParams, step: int) -> Path:
    """The run folder of the only run in `output_dir`."""
    (found,) = params.output_dir.glob(f"checkpoints/*/step-{step}")
    return found


def saved_steps(output_dir: Path) -> list[int]:
    """Steps of all checkpoints of all runs in `output_dir`, even while a run saves and removes some."""
    return sorted(step_of(folder) for run in output_dir.glob("checkpoints/*") for folder in checkpoints(run))


def optimizer(params: TrainParams, step: int) -> dict[str, Any]:
    return torch.load(checkpoint(params, step) / "optimizer.pt", weights_only=True)


def curves(params: TrainParams, step: int) -> list[dict[str, Any]]:
    """The points in a checkpoint, without values that depend on time."""
    lines = (checkpoint(params, step) / "curves.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    return [{k: v for k, v in point.items() if not k.endswith(UNREPEATABLE)} for point in points]


def drawn_steps(reports: Path, name: str) -> list[int]:
    """Steps of a curve written by DVCLive."""
    lines = (reports / "plots/metrics" / f"{name}.tsv").read_text().splitlines()
    return [int(line.split("\t")[0]) for line in lines[1:]]


def assert_same_run(one: TrainParams, other: TrainParams, step: int) -> None:
    """Identical weights, optimiser state, schedule and curves, bit for bit."""
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)
    torch.testing.assert_close(optimizer(one, step), optimizer(other, step), rtol=0, atol=0)
    assert curves(one, step) == curves(other, step)


def plain_training(params: TrainParams) -> None:
    train(params, seed=SEED)


def train_together(
    params: Any,
    processes: int,
    *,
    sharded: bool = False,
    copies: int = 1,
    work: Callable[..., Any] = plain_training,
) -> None:
    """`work(params)` in `processes` processes on the CPU (gloo), under DDP or FSDP2. Raises if one of them fails.

    copies: sharded copies of the model under FSDP2, among which the processes are divided.
    """
    run_together(processes, _run_member, params, processes, free_port(), copies if sharded else 0, work)


def _run_member(rank: int, params: Any, processes: int, port: int, copies: int, work: Callable[..., Any]) -> None:
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)  # reset the parent's state
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if copies:
        launcher = YAML(typ="safe").load(Path(__file__).parents[2] / f"launch/{'hsdp' if copies > 1 else 'fsdp2'}.yaml")
        names = {"fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP"}
        os.environ |= {names.get(key, key.upper()): str(value) for key, value in launcher["fsdp_config"].items()}
        if copies > 1:
            sizes = {"DP_REPLICATE_SIZE": str(copies), "DP_SHARD_SIZE": str(processes // copies)}
            os.environ |= {f"PARALLELISM_CONFIG_{key}": size for key, size in sizes.items()}
            os.environ["ACCELERATE_USE_PARALLELISM_CONFIG"] = "true"
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "true"}
        # Accelerate allows FSDP only on GPUs; torch's FSDP runs on CPUs as well.
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    work(params)
