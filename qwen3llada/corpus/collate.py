"""From samples to a micro-batch: cutting, answer padding, padding and noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from qwen3llada.corpus.samples import Sample
from qwen3llada.diffusion.losses import MaskedLoss
from qwen3llada.diffusion.noising import Noised, NoiseParams, add_noise, noise_levels, random_lengths

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AnswerPadding = Literal["none", "block", "batch"]
PADDING_TOKEN = 0  # any id of the vocabulary does: padding is neither attended nor in the loss
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

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """The batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch with its tensors in page-locked memory (what a DataLoader calls)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            tokens=function(self.tokens),
            noised=Noised(*map(function, self.noised)),
            valid=function(self.valid),
            prompt_lengths=None if self.prompt_lengths is None else function(self.prompt_lengths),
            indices=function(self.indices),
            dataset_indices=function(self.dataset_indices),
            t=function(self.t),
        )


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Makes the micro-batches of an epoch. What it does to a sample depends on (seed, epoch, position) and the step."""

    noise: NoiseParams
    seed: int
    epoch: int
    mask_token_id: int
    sft: bool
    real_tokens: Tensor | None = None  # [R] ids for random_replace
    answer_padding: AnswerPadding = "none"
    block_length: int = 1
    eos_token_id: int | None = None
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.answer_padding != "none" and not self.sft:
            raise ValueError(f"answer_padding={self.answer_padding} must be none: the samples have no prompt_length")
        if self.answer_padding != "none" and self.eos_token_id is None:
            raise ValueError(f"answer_padding={self.answer_padding} must be none: there is no EOS token")
        for name in ("block_length", "pad_to_multiple_of"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")

    def cut_lengths(self, lengths: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens that are kept, [n], of pretraining samples of `lengths` [n]; SFT samples are never cut."""
        if self.sft:
            return lengths
        probability = self.noise.random_length_prob
        return random_lengths(lengths, probability, indices=positions, seed=self.seed, epoch=self.epoch)

    def __call__(
        self,
        samples: Sequence[Sample],
        positions: NDArray[np.int64],
        dataset_indices: NDArray[np.int64],
        step: StepFacts,
    ) -> Batch:
        """The micro-batch of `samples`, noise drawn; without samples a row of padding as long as the step's longest."""
        import torch

        if not samples:
            return self._padding_only(step)
        if any((sample.prompt_length is not None) != self.sft for sample in samples):
            raise ValueError(f"samples {dataset_indices.tolist()} must all have a prompt_length or none of them")
        rows = [self._continue_answer(sample, step.longest) for sample in samples]
        lengths = np.array([len(row) for row in rows])
        padded_length = self._round_up(int(lengths.max()))
        tokens = np.full((len(rows), padded_length), PADDING_TOKEN, dtype=np.int64)
        for target, row in zip(tokens, rows, strict=True):
            target[: len(row)] = row
        valid = np.arange(padded_length) < self.cut_lengths(lengths, positions)[:, None]
        tokens[~valid] = PADDING_TOKEN

        prompts = torch.tensor([sample.prompt_length for sample in samples]) if self.sft else None
        clean, real, indices = torch.from_numpy(tokens), torch.from_numpy(valid), torch.from_numpy(positions)
        noised = add_noise(
            clean,
            self.noise,
            mask_token_id=self.mask_token_id,
            indices=indices,
            seed=self.seed,
            epoch=self.epoch,
            valid=real,
            prompt_lengths=prompts,
            real_tokens=self.real_tokens,
        )
        cursors = {int(position): sample.cursor for position, sample in zip(positions, samples, strict=True)}
        return Batch(
            tokens=clean,
            noised=noised,
            valid=real,
            prompt_lengths=prompts,
            indices=indices,
            dataset_indices=torch.from_numpy(dataset_indices),
            t=noise_levels(indices, seed=self.seed, epoch=self.epoch).float(),
            padded=not valid.all(),
            step=step,
            cursors=cursors if any(sample.cursor is not None for sample in samples) else None,
        )

    def _continue_answer(self, sample: Sample, longest_in_step: int) -> NDArray[Any]:
        """The tokens, the answer continued with EOS as far as `answer_padding` says.

        Only an answer that ends with EOS is continued: a truncated one has none, and must not learn to stop there.
        """
        tokens = sample.tokens
        answer_length = len(tokens) - (sample.prompt_length or 0)
        if self.answer_padding == "none" or answer_length < 1 or tokens[-1] != self.eos_token_id:
            return tokens
        if self.answer_padding == "batch":
            missing = longest_in_step - len(tokens)
        else:
            missing = -answer_length % self.block_length
        return np.concatenate([tokens, np.full(missing, self.eos_token_id, dtype=tokens.dtype)])

    def _padding_only(self, step: StepFacts) -> Batch:
        import torch

        tokens = torch.full((1, self._round_up(step.longest)), PADDING_TOKEN)
        nothing = torch.zeros_like(tokens, dtype=torch.bool)
        no_sample = torch.tensor([NO_SAMPLE])
        return Batch(
            tokens=tokens,
            noised=Noised(tokens, nothing, torch.ones(1)),
            valid=nothing,
            prompt_lengths=torch.zeros(1, dtype=torch.long) if self.sft else None,
            indices=no_sample,
            dataset_indices=no_sample,
            t=torch.ones(1),
            padded=True,
            step=step,
        )

    def _round_up(self, length: int) -> int:
        return -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
