"""A run: all that training works on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qwen3llada.batches.source import Source
from qwen3llada.objective.batch_loss import BatchLoss
from qwen3llada.training.checkpoints.fingerprint import Fingerprint
from qwen3llada.training.checkpoints.folder import TrainerState
from qwen3llada.training.params import TrainParams
from qwen3llada.training.start.memory_estimate import MemoryEstimate
from qwen3llada.training.watch.flops import FlopCounter

if TYPE_CHECKING:
    from accelerate import Accelerator

    from qwen3llada.training.cuda.layer_graphs import LayerGraphs


@dataclass(kw_only=True)
class Run:
    """What the loop and the checkpoints need."""

    params: TrainParams
    accelerator: "Accelerator"
    model: Any  # Qwen3LLadaForMaskedLM, with adapters inside if there are any
    adapted: Any  # the peft model around it, or None
    objective: nn.Module  # prepared by Accelerate
    optimizer: Any  # prepared by Accelerate
    optimizer_name: str
    schedule: torch.optim.lr_scheduler.LambdaLR
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
    state: TrainerState
    points: list[dict[str, Any]]  # of the curves, from the checkpoint
    resumed_from: Path | None
    last_checkpoint: Path | None
    began_after: int = 0  # steps of the checkpoint that it went on from
    has_saved: bool = False  # a checkpoint, since then

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer

    @property
    def averaged_over(self) -> int:
        """What gradients are divided by as processes reduce them: FSDP2 averages, DDP sums (`GradientSum`)."""
        return self.accelerator.num_processes if self.accelerator.is_fsdp2 else 1

    @property
    def scales_in_update(self) -> bool:
        """Whether the optimiser's own kernel can scale the gradients, which saves reading and writing them once."""
        fused = self.optimizer_name == "adamw" and self.device.type == "cuda"
        return fused and self.accelerator.scaler is None and not self.accelerator.is_fsdp2

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser trains."""
        return [p for group in self.inner_optimizer.param_groups for p in group["params"]]
