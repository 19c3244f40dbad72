"""From samples to a micro-batch: cutting, answer padding, padding and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from qwen3llada.batches.batch import NO_SAMPLE, Batch, StepFacts
from qwen3llada.batches.samples import Sample
from qwen3llada.diffusion.corruption import Noised, NoiseParams, add_noise, noise_levels, random_lengths
from qwen3llada.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

AnswerPadding = Literal["none", "block", "batch"]
PADDING_TOKEN = 0  # any id of the vocabulary does: padding is neither attended nor in the loss


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Makes the micro-batches of an epoch. What it does to a sample depends on (seed, epoch, position) and the step."""

    noise: NoiseParams
    seed: int
    epoch: int
    mask_token_id: int
    sft: bool
    real_tokens: Tensor | None = None  # [R] ids for the noise types that draw some
    at_least_one: bool = False  # of the maskable positions of a sample is masked, as in `add_noise`
    answer_padding: AnswerPadding = "none"
    block_length: int = 1
    max_length: int | None = None  # tokens that no answer is continued beyond
    eos_token_id: int | None = None
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.answer_padding != "none" and not self.sft:
            raise InputError(f"answer_padding={self.answer_padding} must be none: the samples have no prompt_length")
        if self.answer_padding != "none" and self.eos_token_id is None:
            raise InputError(f"answer_padding={self.answer_padding} must be none: there is no EOS token")
        for name in ("block_length", "pad_to_multiple_of"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be 1 or more")

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
            raise InputError(f"samples {dataset_indices.tolist()} must all have a prompt_length or none of them")
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
            at_least_one=self.at_least_one,
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
        if self.max_length is not None:
            missing = min(missing, max(0, self.max_length - len(tokens)))
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
