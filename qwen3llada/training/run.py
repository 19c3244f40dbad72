"""A run: everything that training works on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import nn

from qwen3llada.batches.source import Source
from qwen3llada.objective.batch_loss import BatchLoss
from qwen3llada.training.checkpoints.fingerprint import Fingerprint
from qwen3llada.training.checkpoints.folder import TrainerState
from qwen3llada.training.run_params import RunParams
from qwen3llada.training.start.memory_estimate import MemoryEstimate
from qwen3llada.training.start.sharding import Sharded
from qwen3llada.training.watch.flops import FlopCounter

if TYPE_CHECKING:
    from accelerate import Accelerator

    from qwen3llada.training.cuda.layer_graphs import LayerGraphs


class Evaluation(NamedTuple):
    """What was measured on held-out data after a step."""

    name: str  # of the value, in the summary: eval_loss, eval_reward
    value: float
    curves: dict[str, float]  # to be drawn
    higher_is_better: bool = False
    ends_run: bool = False  # whether training may end here


class Judge(Protocol):
    """Measures something else than the training loss on held-out data, also before the first step."""

    name: str

    def measure(self, run: "Run") -> Evaluation:
        """The same on all ranks, which must all call it."""


@dataclass(kw_only=True)
class Run:
    """State and settings that the loop and the checkpoints need."""

    params: RunParams
    accelerator: "Accelerator"
    model: Any  # Qwen3LLadaForMaskedLM, with adapters inside if there are any
    adapted: Any  # the peft model around `model`, or None
    objective: nn.Module  # prepared by Accelerate
    optimizer: Any  # prepared by Accelerate
    optimizer_name: str
    lr_schedule: torch.optim.lr_scheduler.LambdaLR
    loss: BatchLoss
    data: Source
    held_out: Source | None
    total_steps: int
    tokenizer: Any
    flops: FlopCounter
    memory: MemoryEstimate
    fingerprint: Fingerprint
    compiled: bool
    graphs: "LayerGraphs | None"
    sharded: Sharded | None  # under FSDP2
    state: TrainerState
    points: list[dict[str, Any]]  # points of the curves, from the checkpoint
    resumed_from: Path | None
    last_checkpoint: Path | None
    judge: Judge | None = None  # None: the loss on `held_out` is measured, if that is given
    began_after: int = 0  # step of the checkpoint that the run resumed from
    has_saved: bool = False  # whether a checkpoint has been saved since then
    shard_writer: Any = None  # `ShardWriter` of a sharded run, once it has saved
    saving: Path | None = None  # the checkpoint in flight

    @property
    def is_measured(self) -> bool:
        """Whether anything is measured on held-out data."""
        return self.judge is not None or self.held_out is not None

    @property
    def measured(self) -> str:
        """Name of what is measured on held-out data."""
        return "eval_loss" if self.judge is None else self.judge.name

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer

    @property
    def averaged_over(self) -> int:
        """Ranks over which gradient reduction averages: all under FSDP2, 1 under DDP, which sums (`GradientSum`)."""
        return self.accelerator.num_processes if self.accelerator.is_fsdp2 else 1

    @property
    def scales_in_update(self) -> bool:
        """Whether the optimiser's kernel scales the gradients, which saves a pass over them."""
        fused = self.optimizer_name == "adamw" and self.device.type == "cuda"
        return fused and self.accelerator.scaler is None and not self.accelerator.is_fsdp2

    def parameters(self) -> list[nn.Parameter]:
        """Parameters that the optimiser trains."""
        return [p for group in self.inner_optimizer.param_groups for p in group["params"]]
