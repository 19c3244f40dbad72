"""A micro-batch, and the optimiser step that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen3llada.diffusion.corruption import Noised
from qwen3llada.diffusion.losses import MaskedLoss


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """What every process knows of a whole optimiser step, and which of its micro-batches this is."""

    number: int  # of the step in its epoch, from 0
    micro_batch: int  # number of this one, from 0
    micro_batches: int  # of each process in the step
    samples: int  # of all processes
    tokens: int  # real tokens of all samples: in pretraining after cutting, in SFT as stored
    longest: int  # tokens of the longest sample as stored
    sft: bool  # the samples are prompts with answers

    @property
    def is_last_micro_batch(self) -> bool:
        """Whether the optimiser steps after this micro-batch."""
        return self.micro_batch == self.micro_batches - 1

    def denominator(self, loss: MaskedLoss) -> float:
        """What the summed loss of the step, over all its micro-batches and processes, is divided by."""
        return loss.step_denominator(tokens=self.tokens, samples=self.samples, sft=self.sft)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch. Rows are padded on the right; a process without a sample gets one row of padding."""

    tokens: Tensor  # [B, L] int64, clean
    noised: Noised
    valid: Tensor  # [B, L] bool, real tokens, those that continue an answer included
    prompt_lengths: Tensor | None  # [B] int64 in SFT
    t: Tensor  # [B] or [B, L] float32, noise levels
    padded: bool  # whether there is any padding, known without asking the device
    step: StepFacts
    cursors: Mapping[int, Any] | None = None  # position -> cursor of a stream

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        """For pickling: all tensors in one. Each costs a loader worker a segment of shared memory and a message."""
        tensors = self._tensors()
        packed = torch.cat([x.contiguous().flatten().view(torch.uint8) for x in tensors.values()])
        layout = [(name, x.dtype, x.shape) for name, x in tensors.items()]
        return _unpack, (packed, layout, self.padded, self.step, self.cursors)

    def _tensors(self) -> dict[str, Tensor]:
        """By name, those of the widest type first: packed in this order each starts at a multiple of its width."""
        tensors = {"tokens": self.tokens, "noisy": self.noised.tokens}
        if self.prompt_lengths is not None:
            tensors["prompt_lengths"] = self.prompt_lengths
        tensors |= {"p_mask": self.noised.p_mask, "t": self.t}
        return tensors | {"masked": self.noised.masked, "valid": self.valid}


def _unpack(
    packed: Tensor,
    layout: Sequence[tuple[str, torch.dtype, torch.Size]],
    padded: bool,
    step: StepFacts,
    cursors: Mapping[int, Any] | None,
) -> Batch:
    """The batch that `Batch.__reduce__` took apart; its tensors are views of `packed`, uint8 [bytes]."""
    sizes = [shape.numel() * dtype.itemsize for _, dtype, shape in layout]
    parts = zip(layout, packed.split(sizes), strict=True)
    tensors = {name: part.view(dtype).view(shape) for (name, dtype, shape), part in parts}
    return Batch(
        tokens=tensors["tokens"],
        noised=Noised(tensors["noisy"], tensors["masked"], tensors["p_mask"]),
        valid=tensors["valid"],
        prompt_lengths=tensors.get("prompt_lengths"),
        t=tensors["t"],
        padded=padded,
        step=step,
        cursors=cursors,
    )
