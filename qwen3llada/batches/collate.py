"""From samples to a micro-batch: cut texts, extend answers, pad, add noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3llada.batches.answer_methods import one_block, parts, trajectory_noise
from qwen3llada.batches.batch import Batch, StepFacts
from qwen3llada.batches.samples import Sample
from qwen3llada.batches.settings import BatchSettings, Phase
from qwen3llada.diffusion.corruption import Noised, add_noise, complement, maskable_positions, random_lengths
from qwen3llada.diffusion.levels import levels_of, noise_levels
from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import blocks_of_columns, document_numbers

PADDING_TOKEN = 0  # any id would do: padding is neither attended to nor in the loss


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Makes the micro-batches of an epoch. The result for a sample depends on (seed, epoch, position) and the step."""

    settings: BatchSettings
    epoch: int
    sft: bool  # whether samples are prompts with answers

    def __post_init__(self) -> None:
        if self.settings.answer_padding != "none" and not self.sft:
            raise InputError(
                f"answer_padding={self.settings.answer_padding} must be none: the samples have no prompt_length"
            )

    def phase(self, step: int) -> Phase:
        """Settings in step number `step` of the epoch."""
        return self.settings.phase(self.epoch, step)

    def facts_of_phase(self, step: int) -> dict[str, Any]:
        """The fields of `StepFacts` that change in the course of a run."""
        phase = self.phase(step)
        return {"block_length": phase.block_length, "reweight_cap": phase.noise.reweight_cap}

    def cut_lengths(self, lengths: NDArray[np.int64], positions: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """Tokens kept, [n], of pretraining samples of `lengths` [n] tokens in a step. SFT samples are never cut."""
        if self.sft:
            return lengths
        probability = self.phase(step).noise.random_length_prob
        return random_lengths(lengths, probability, indices=positions, seed=self.settings.seed, epoch=self.epoch)

    def __call__(self, samples: Sequence[Sample], positions: NDArray[np.int64], step: StepFacts) -> Batch:
        """The noised micro-batch of `samples`. Without samples: one row of padding, as long as the step's longest.

        `positions`: each sample's position in the epoch's order, which is the key of its noise.
        """
        if not samples:
            return self._padding_only(step)
        phase, key = self.phase(step.number), {"seed": self.settings.seed, "epoch": self.epoch}
        method, causal = self.settings.answer_method, self.settings.attention.causal
        if method != "trace":
            samples = [sample._replace(tokens=self._continue_answer(sample, step)) for sample in samples]
        if method == "semi_ar":
            chosen = zip(samples, parts(positions, **key), strict=True)
            samples = [one_block(sample, part, phase.block_length, from_zero=causal) for sample, part in chosen]
        tokens, valid = self._padded(samples, positions, step)
        prompts = torch.tensor([sample.prompt_length for sample in samples]) if self.sft else None
        indices = torch.from_numpy(positions)
        blocks = self._blocks(tokens, valid, prompts, phase) if phase.levels_by_block else None
        levels = noise_levels(indices, **key, t_range=phase.noise.t_range, blocks=blocks)
        given: dict[str, Any] = {
            "mask_token_id": self.settings.mask_token_id,
            "indices": indices,
            "valid": valid,
            "prompt_lengths": prompts,
            "real_tokens": self.settings.real_tokens,
        } | key
        if method == "trace":
            noised, levels = trajectory_noise(
                samples,
                parts(positions, **key),
                tokens,
                mask_token_id=self.settings.mask_token_id,
                block_length=phase.block_length,
                side_by_side=causal,
            )
            return self._batch(samples, positions, (tokens, valid, prompts), noised, None, levels, step)
        noised = add_noise(tokens, phase.noise, **given, levels=levels, at_least_one=self.settings.at_least_one)
        second = complement(tokens, noised, phase.noise, **given) if phase.noise.views == 2 else None
        return self._batch(samples, positions, (tokens, valid, prompts), noised, second, levels, step)

    def _batch(
        self,
        samples: Sequence[Sample],
        positions: NDArray[np.int64],
        rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        noised: Noised,
        second: Noised | None,
        levels: torch.Tensor,
        step: StepFacts,
    ) -> Batch:
        """`rows`: tokens, valid and prompt lengths."""
        tokens, valid, prompts = rows
        cursors = {int(position): sample.cursor for position, sample in zip(positions, samples, strict=True)}
        return Batch(
            tokens=tokens,
            noised=noised,
            complement=second,
            valid=valid,
            prompt_lengths=prompts,
            t=levels.float(),
            t_complement=None if second is None else levels_of(second.p_mask, self.phase(step.number).noise),
            padded=not valid.all(),
            step=step,
            cursors=cursors if any(sample.cursor is not None for sample in samples) else None,
        )

    def _blocks(
        self, tokens: torch.Tensor, valid: torch.Tensor, prompts: torch.Tensor | None, phase: Phase
    ) -> torch.Tensor:
        """Block number of each position [B, L], unique within a row; -1 where nothing can be masked."""
        maskable = maskable_positions(tokens, valid, prompts)
        lengths = torch.zeros(len(tokens), dtype=torch.long) if prompts is None else prompts
        end = self.settings.document_end
        documents = None if end is None else document_numbers(tokens, end)
        causal = self.settings.attention.causal
        policy = "block_causal" if causal else "block"
        numbers = blocks_of_columns(policy, lengths, tokens.shape[1], phase.block_length, documents)
        if documents is not None:
            numbers = numbers + documents * (1 + tokens.shape[1])  # one document cannot have more blocks than that
        return numbers.expand_as(tokens).where(maskable, -1)

    def _padded(
        self, samples: Sequence[Sample], positions: NDArray[np.int64], step: StepFacts
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, L] int64 and valid [B, L] bool, with texts cut and rows padded."""
        rows = [sample.tokens for sample in samples]
        lengths = np.array([len(row) for row in rows])
        padded_length = self._round_up(int(lengths.max()))
        tokens = np.full((len(rows), padded_length), PADDING_TOKEN, dtype=np.int64)
        for target, row in zip(tokens, rows, strict=True):
            target[: len(row)] = row
        valid = np.arange(padded_length) < self.cut_lengths(lengths, positions, step.number)[:, None]
        tokens[~valid] = PADDING_TOKEN
        return torch.from_numpy(tokens), torch.from_numpy(valid)

    def _continue_answer(self, sample: Sample, step: StepFacts) -> NDArray[Any]:
        """The sample's tokens. Its answer is extended with EOS as far as `answer_padding` says.

        Only an answer that ends with EOS is extended. A truncated answer must not teach the model to stop there.
        """
        tokens, settings = sample.tokens, self.settings
        answer_length = len(tokens) - (sample.prompt_length or 0)
        if settings.answer_padding == "none" or answer_length < 1 or tokens[-1] != settings.eos_token_id:
            return tokens
        if settings.answer_padding == "batch":
            missing = step.longest - len(tokens)
        else:
            counted = len(tokens) if settings.attention.causal else answer_length
            missing = -counted % step.block_length
        if settings.max_length is not None:
            missing = min(missing, max(0, settings.max_length - len(tokens)))
        return np.concatenate([tokens, np.full(missing, settings.eos_token_id, dtype=tokens.dtype)])

    def _padding_only(self, step: StepFacts) -> Batch:
        tokens = torch.full((1, self._round_up(step.longest)), PADDING_TOKEN)
        nothing = torch.zeros_like(tokens, dtype=torch.bool)
        two_views = self.phase(step.number).noise.views == 2
        return Batch(
            tokens=tokens,
            noised=Noised(tokens, nothing, torch.ones(1)),
            complement=Noised(tokens, nothing, torch.ones(1)) if two_views else None,
            valid=nothing,
            prompt_lengths=torch.zeros(1, dtype=torch.long) if self.sft else None,
            t=torch.ones(1),
            t_complement=torch.ones(1) if two_views else None,
            padded=True,
            step=step,
        )

    def _round_up(self, length: int) -> int:
        multiple = self.settings.pad_to_multiple_of
        return -(-length // multiple) * multiple
