"""A micro-batch and what it knows of the optimiser step that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen3llada.diffusion.corruption import Noised
from qwen3llada.diffusion.losses import MaskedLoss

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NO_SAMPLE = -1  # index of the row of padding that a process without a sample gets


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """What every process knows of a whole optimiser step, and which part of it a micro-batch is.

    `tokens`: real tokens of all its samples, in pretraining after cutting, in SFT as stored. `longest`: tokens of its
    longest sample as stored.
    """

    number: int
    micro_batch: int
    micro_batches: int
    samples: int
    tokens: int
    longest: int

    @property
    def is_last_micro_batch(self) -> bool:
        """Whether the optimiser steps after this micro-batch."""
        return self.micro_batch == self.micro_batches - 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch. Rows are padded on the right; a row without a sample is all padding, its indices NO_SAMPLE."""

    tokens: Tensor  # [B, L] int64, clean
    noised: Noised
    valid: Tensor  # [B, L] bool, real tokens, those that continue an answer included
    prompt_lengths: Tensor | None  # [B] int64 in SFT
    indices: Tensor  # [B] int64, positions in the epoch's order
    dataset_indices: Tensor  # [B] int64
    t: Tensor  # [B] float32, noise levels
    padded: bool  # whether there is any padding, known without asking the device
    step: StepFacts
    cursors: Mapping[int, Any] | None = None  # position -> cursor of a stream

    def step_denominator(self, loss: MaskedLoss) -> float:
        """What the summed loss of the whole step, over all micro-batches and processes, is divided by."""
        return loss.step_denominator(
            tokens=self.step.tokens, samples=self.step.samples, sft=self.prompt_lengths is not None
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on `device`; out of page-locked memory without waiting for the copies."""
        import torch

        # A copy to the CPU must be waited for: nothing else tells when the values have arrived.
        non_blocking = torch.device(device).type != "cpu"
        return self._with({name: x.to(device, non_blocking=non_blocking) for name, x in self._tensors().items()})

    def pin_memory(self) -> Batch:
        """The batch with its tensors in page-locked memory (what a DataLoader calls)."""
        return self._with({name: x.pin_memory() for name, x in self._tensors().items()})

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        """For pickling: all tensors in one. Each costs a loader worker a segment of shared memory and a message."""
        import torch

        tensors = self._tensors()
        packed = torch.cat([x.contiguous().flatten().view(torch.uint8) for x in tensors.values()])
        layout = [(name, x.dtype, x.shape) for name, x in tensors.items()]
        return _unpack, (packed, layout, self.padded, self.step, self.cursors)

    def _tensors(self) -> dict[str, Tensor]:
        """By name, those of the widest type first: packed in this order each starts at a multiple of its width."""
        tensors = {"tokens": self.tokens, "noisy": self.noised.tokens}
        tensors |= {"indices": self.indices, "dataset_indices": self.dataset_indices}
        if self.prompt_lengths is not None:
            tensors["prompt_lengths"] = self.prompt_lengths
        tensors |= {"p_mask": self.noised.p_mask, "t": self.t}
        return tensors | {"masked": self.noised.masked, "valid": self.valid}

    def _with(self, tensors: Mapping[str, Tensor]) -> Batch:
        return _from_tensors(tensors, self.padded, self.step, self.cursors)


def _from_tensors(
    tensors: Mapping[str, Tensor], padded: bool, step: StepFacts, cursors: Mapping[int, Any] | None
) -> Batch:
    return Batch(
        tokens=tensors["tokens"],
        noised=Noised(tensors["noisy"], tensors["masked"], tensors["p_mask"]),
        valid=tensors["valid"],
        prompt_lengths=tensors.get("prompt_lengths"),
        indices=tensors["indices"],
        dataset_indices=tensors["dataset_indices"],
        t=tensors["t"],
        padded=padded,
        step=step,
        cursors=cursors,
    )


def _unpack(packed: Tensor, layout: Sequence[tuple[str, torch.dtype, torch.Size]], *rest: Any) -> Batch:
    """The batch that `Batch.__reduce__` took apart; its tensors are views of `packed`, uint8 [bytes]."""
    sizes = [shape.numel() * dtype.itemsize for _, dtype, shape in layout]
    parts = zip(layout, packed.split(sizes), strict=True)
    return _from_tensors({name: part.view(dtype).view(shape) for (name, dtype, shape), part in parts}, *rest)
