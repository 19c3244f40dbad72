"""A micro-batch and facts about its optimiser step."""

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
    """Facts about a whole optimiser step, known to every rank, and the number of this micro-batch in it."""

    number: int  # number of the step in its epoch, from 0
    micro_batch: int  # number of this micro-batch in the step, from 0
    micro_batches: int  # micro-batches of each rank in the step
    samples: int  # over all ranks
    tokens: int  # real tokens of all samples; in pretraining after cutting, in SFT as stored
    longest: int  # tokens of the longest sample, as stored
    sft: bool  # whether samples are prompts with answers
    block_length: int = 1  # tokens of a block in this step
    reweight_cap: float | None = None  # upper bound of the weight 1/p in this step

    @property
    def is_last_micro_batch(self) -> bool:
        """Whether the optimiser steps after this micro-batch."""
        return self.micro_batch == self.micro_batches - 1

    def denominator(self, loss: MaskedLoss) -> float:
        """Divisor of the step's loss sum over all micro-batches and ranks."""
        return loss.step_denominator(tokens=self.tokens, samples=self.samples, sft=self.sft)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch. Rows are padded on the right. A rank without a sample gets one row of padding."""

    tokens: Tensor  # [B, L] int64, clean
    noised: Noised
    complement: Noised | None  # the second view, if there is one
    valid: Tensor  # [B, L] bool, real tokens, including the EOS tokens that extend an answer
    prompt_lengths: Tensor | None  # [B] int64 in SFT
    t: Tensor  # [B] or [B, L] float32, noise levels
    t_complement: Tensor | None = None  # the same of the second view, if there is one
    padded: bool  # whether there is any padding, known without a device sync
    step: StepFacts
    cursors: Mapping[int, Any] | None = None  # position -> where the stream goes on after it

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        """Pickle all tensors as one. Each tensor would cost a loader worker a shared-memory segment and a message."""
        tensors = self._tensors()
        packed = torch.cat([x.contiguous().flatten().view(torch.uint8) for x in tensors.values()])
        layout = [(name, x.dtype, x.shape) for name, x in tensors.items()]
        return _unpack, (packed, layout, self.padded, self.step, self.cursors)

    def _tensors(self) -> dict[str, Tensor]:
        """Tensors by name, widest dtype first: packed in this order, each starts at a multiple of its element size."""
        tensors = {"tokens": self.tokens, "noisy": self.noised.tokens}
        if self.prompt_lengths is not None:
            tensors["prompt_lengths"] = self.prompt_lengths
        tensors |= {"p_mask": self.noised.p_mask, "t": self.t}
        tensors |= {"masked": self.noised.masked, "valid": self.valid}
        if self.complement is not None:
            second = zip(("noisy_2", "masked_2", "p_mask_2"), self.complement, strict=True)
            tensors |= dict(second)
        if self.t_complement is not None:
            tensors["t_2"] = self.t_complement
        return dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))


def _unpack(
    packed: Tensor,
    layout: Sequence[tuple[str, torch.dtype, torch.Size]],
    padded: bool,
    step: StepFacts,
    cursors: Mapping[int, Any] | None,
) -> Batch:
    """Rebuild a batch from `Batch.__reduce__`. Its tensors are views of `packed`, uint8 [bytes]."""
    sizes = [shape.numel() * dtype.itemsize for _, dtype, shape in layout]
    parts = zip(layout, packed.split(sizes), strict=True)
    tensors = {name: part.view(dtype).view(shape) for (name, dtype, shape), part in parts}
    return Batch(
        tokens=tensors["tokens"],
        noised=Noised(tensors["noisy"], tensors["masked"], tensors["p_mask"]),
        complement=Noised(tensors["noisy_2"], tensors["masked_2"], tensors["p_mask_2"])
        if "noisy_2" in tensors
        else None,
        valid=tensors["valid"],
        prompt_lengths=tensors.get("prompt_lengths"),
        t=tensors["t"],
        t_complement=tensors.get("t_2"),
        padded=padded,
        step=step,
        cursors=cursors,
    )
