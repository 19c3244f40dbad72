"""From samples to a micro-batch: cutting, answer padding, padding and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3llada.batches.batch import Batch, StepFacts
from qwen3llada.batches.samples import Sample
from qwen3llada.batches.settings import BatchSettings
from qwen3llada.diffusion.corruption import Noised, add_noise, noise_levels, random_lengths
from qwen3llada.errors import InputError

PADDING_TOKEN = 0  # any id of the vocabulary does: padding is neither attended nor in the loss


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Makes the micro-batches of an epoch. What it does to a sample depends on (seed, epoch, position) and the step."""

    settings: BatchSettings
    epoch: int
    sft: bool  # the samples are prompts with answers

    def __post_init__(self) -> None:
        if self.settings.answer_padding != "none" and not self.sft:
            raise InputError(
                f"answer_padding={self.settings.answer_padding} must be none: the samples have no prompt_length"
            )

    def cut_lengths(self, lengths: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens that are kept, [n], of pretraining samples of `lengths` [n]; SFT samples are never cut."""
        if self.sft:
            return lengths
        probability = self.settings.noise.random_length_prob
        return random_lengths(lengths, probability, indices=positions, seed=self.settings.seed, epoch=self.epoch)

    def __call__(self, samples: Sequence[Sample], positions: NDArray[np.int64], step: StepFacts) -> Batch:
        """The micro-batch of `samples`, noise drawn; without samples a row of padding as long as the step's longest.

        `positions`, as many as samples: of each in the epoch's order. Its noise is keyed by it.
        """
        if not samples:
            return self._padding_only(step)
        tokens, valid = self._padded(samples, positions, step)
        prompts = torch.tensor([sample.prompt_length for sample in samples]) if self.sft else None
        indices = torch.from_numpy(positions)
        levels = noise_levels(indices, seed=self.settings.seed, epoch=self.epoch)
        noised = add_noise(
            tokens,
            self.settings.noise,
            mask_token_id=self.settings.mask_token_id,
            indices=indices,
            seed=self.settings.seed,
            epoch=self.epoch,
            levels=levels,
            valid=valid,
            prompt_lengths=prompts,
            real_tokens=self.settings.real_tokens,
            at_least_one=self.settings.at_least_one,
        )
        cursors = {int(position): sample.cursor for position, sample in zip(positions, samples, strict=True)}
        return Batch(
            tokens=tokens,
            noised=noised,
            valid=valid,
            prompt_lengths=prompts,
            t=levels.float(),
            padded=not valid.all(),
            step=step,
            cursors=cursors if any(sample.cursor is not None for sample in samples) else None,
        )

    def _padded(
        self, samples: Sequence[Sample], positions: NDArray[np.int64], step: StepFacts
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, L] int64 and which of them are real [B, L] bool: answers continued, texts cut, rows padded."""
        rows = [self._continue_answer(sample, step.longest) for sample in samples]
        lengths = np.array([len(row) for row in rows])
        padded_length = self._round_up(int(lengths.max()))
        tokens = np.full((len(rows), padded_length), PADDING_TOKEN, dtype=np.int64)
        for target, row in zip(tokens, rows, strict=True):
            target[: len(row)] = row
        valid = np.arange(padded_length) < self.cut_lengths(lengths, positions)[:, None]
        tokens[~valid] = PADDING_TOKEN
        return torch.from_numpy(tokens), torch.from_numpy(valid)

    def _continue_answer(self, sample: Sample, longest_in_step: int) -> NDArray[Any]:
        """The tokens, the answer continued with EOS as far as `answer_padding` says.

        Only an answer that ends with EOS is continued: a truncated one has none, and must not learn to stop there.
        """
        tokens, settings = sample.tokens, self.settings
        answer_length = len(tokens) - (sample.prompt_length or 0)
        if settings.answer_padding == "none" or answer_length < 1 or tokens[-1] != settings.eos_token_id:
            return tokens
        if settings.answer_padding == "batch":
            missing = longest_in_step - len(tokens)
        else:
            missing = -answer_length % settings.block_length
        if settings.max_length is not None:
            missing = min(missing, max(0, settings.max_length - len(tokens)))
        return np.concatenate([tokens, np.full(missing, settings.eos_token_id, dtype=tokens.dtype)])

    def _padding_only(self, step: StepFacts) -> Batch:
        tokens = torch.full((1, self._round_up(step.longest)), PADDING_TOKEN)
        nothing = torch.zeros_like(tokens, dtype=torch.bool)
        return Batch(
            tokens=tokens,
            noised=Noised(tokens, nothing, torch.ones(1)),
            valid=nothing,
            prompt_lengths=torch.zeros(1, dtype=torch.long) if self.sft else None,
            t=torch.ones(1),
            padded=True,
            step=step,
        )

    def _round_up(self, length: int) -> int:
        multiple = self.settings.pad_to_multiple_of
        return -(-length // multiple) * multiple
