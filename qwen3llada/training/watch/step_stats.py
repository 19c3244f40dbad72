"""Measurements of a step, kept on the device until they are read, so that the device never waits for the host."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qwen3llada.objective.batch_loss import LossSum
from qwen3llada.objective.loss_by_level import BUCKETS, bucket_sums


@dataclass(frozen=True)
class StepValues:
    """Numbers of one optimiser step, over all micro-batches and ranks."""

    loss: float
    grad_norm: float
    stop: bool  # whether any rank was asked to stop
    cross_entropy: list[float]  # sums over corrupted positions, by noise level
    corrupted: list[float]  # number of these positions, by noise level
    figures: list[float] = field(default_factory=list)  # of the loss, see `BatchLoss.figure_names`


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of an optimiser step. The device may still be computing it; `read` waits for this step only."""

    step: int  # optimiser steps done, including this one
    epoch: int
    epoch_batch: int  # number of this step in its epoch, from 0
    lr: float
    tokens: int  # real tokens of all ranks
    flops: float  # executed by this rank
    read: Callable[[], StepValues]
    figures: Mapping[str, float] = field(default_factory=dict)  # of the step's data


class StepStats:
    """Collects a step's numbers in one small tensor.

    [loss, stop, sums of CE [10], counts [10], figures of the loss [F], gradient norm]
    """

    def __init__(self, device: torch.device, figures: int = 0):
        self.loss = torch.zeros((), device=device)
        self.figures = torch.zeros(figures, device=device)
        self.buckets = torch.zeros(2, BUCKETS, device=device)

    def add(self, loss: LossSum, denominator: float) -> None:
        """Add one micro-batch, whose summed loss is divided by `denominator`."""
        self.loss += loss.total.detach() / denominator
        self.buckets += bucket_sums(loss)
        if loss.figures is not None:
            self.figures += loss.figures / denominator

    def finish(self, grad_norm: Tensor, stop: bool, reduce: Callable[[Tensor], Tensor]) -> Callable[[], StepValues]:
        """Sum over ranks by `reduce` and start the copy to the host. Returns a function that waits for the numbers."""
        stopping = torch.full((1,), float(stop), device=self.loss.device)
        packed = reduce(torch.cat([self.loss[None], stopping, self.buckets.flatten(), self.figures]))
        packed = torch.cat([packed, grad_norm.detach().to(packed)[None]])
        if packed.device.type != "cuda":
            return lambda: _unpack(packed)
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        host.copy_(packed, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def read() -> StepValues:
            done.synchronize()
            return _unpack(host)

        return read


def _unpack(packed: Tensor) -> StepValues:
    loss, stop, *rest = packed.tolist()
    return StepValues(
        loss=loss,
        stop=stop > 0,
        cross_entropy=rest[:BUCKETS],
        corrupted=rest[BUCKETS : 2 * BUCKETS],
        figures=rest[2 * BUCKETS : -1],
        grad_norm=rest[-1],
    )
