"""Settings of batches: how a sample is processed, and how a step's samples are distributed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.diffusion.noise_types import NOISE_TYPES
from qwen3llada.diffusion.params import NoiseParams
from qwen3llada.errors import InputError
from qwen3llada.modeling.params import AttentionParams

if TYPE_CHECKING:  # the parameters import this module and need no torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

NO_ATTENTION = AttentionParams.model_validate({})  # the defaults
AnswerPadding = Literal["none", "block", "batch"]
AnswerMethod = Literal["random", "semi_ar", "trace"]


class BatchKnobs(Protocol):
    """Knobs of a training section that determine batches. Evaluation uses the same."""

    @property
    def loss_impl(self) -> str: ...
    @property
    def noise(self) -> NoiseParams: ...
    @property
    def attention(self) -> AttentionParams: ...
    @property
    def padding_of_answers(self) -> AnswerPadding: ...
    @property
    def answer_method(self) -> AnswerMethod: ...
    @property
    def max_length(self) -> int: ...
    @property
    def pad_to_multiple_of(self) -> int: ...
    @property
    def bucket(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Settings that change in the course of a run."""

    noise: NoiseParams
    block_length: int  # tokens
    levels_by_block: bool  # whether each block has its own noise level


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchSettings:
    """Everything that determines batches, besides the samples and the epoch.

    An optimiser step takes the next micro batch × accumulation × ranks samples of the epoch's order.
    Raises InputError for values out of range and for unsupported combinations.
    """

    seed: int  # of sample order and noise
    # How a sample is processed.
    noise: NoiseParams  # how sequences are corrupted
    mask_token_id: int
    eos_token_id: int | None = None  # ends an answer and extends it
    real_tokens: Tensor | None = None  # [R] int64, ids that noise types draw from
    at_least_one: bool = False  # force a masked position in every sample, as in `add_noise`
    answer_padding: AnswerPadding = "none"  # extend answers to whole blocks, or to the step's longest sample
    answer_method: AnswerMethod = "random"  # under random masks, one block at a time, or in a trajectory's order
    attention: AttentionParams = field(default_factory=lambda: NO_ATTENTION)  # how sequences are cut into blocks
    max_length: int | None = None  # tokens of a sample up to which an answer is extended
    pad_to_multiple_of: int = 1  # batch lengths are multiples of this
    # Which samples a step takes, and which rank computes them.
    bucket: int = 1  # samples of similar length come in groups of this many (see `epoch_order`)
    micro_batch_size: int  # samples in one forward pass of one rank
    gradient_accumulation_steps: int = 1  # forward passes per optimiser step
    num_processes: int = 1  # ranks
    process_index: int = 0  # this rank
    num_workers: int = 0  # loader processes that make batches ahead of time; 0: made in this process on demand
    # Length of the run, for settings that change in its course.
    total_steps: int = 0  # optimiser steps of the run; 0: settings are those of a run's end
    steps_per_epoch: int = 0  # 0: a stream, which is a single epoch

    def __post_init__(self) -> None:
        counts = ("micro_batch_size", "gradient_accumulation_steps", "num_processes")
        for name in (*counts, "pad_to_multiple_of", "bucket"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be 1 or more")
        if not 0 <= self.process_index < self.num_processes:
            raise InputError(f"process_index={self.process_index} must be in [0, {self.num_processes})")
        if self.answer_padding != "none" and self.eos_token_id is None:
            raise InputError(f"answer_padding={self.answer_padding} must be none: there is no EOS token")

    def phase(self, epoch: int, step: int) -> Phase:
        """Settings in step number `step` of the epoch."""
        done = epoch * self.steps_per_epoch + step
        share = min(1.0, done / self.total_steps) if self.total_steps else 1.0
        noise = self.noise.at(share)
        return Phase(
            noise=noise,
            block_length=self.attention.block_length_at(share),
            levels_by_block=noise.level == "block" or (noise.level == "auto" and self.attention.causal),
        )

    @property
    def document_end(self) -> int | None:
        """The token that ends a document, if attention stays within documents."""
        return self.eos_token_id if self.attention.keeps_within_documents else None

    @property
    def round_size(self) -> int:
        """Samples in one forward pass of all ranks."""
        return self.micro_batch_size * self.num_processes

    @property
    def step_size(self) -> int:
        """Samples in an optimiser step of all ranks."""
        return self.round_size * self.gradient_accumulation_steps


def batch_settings(
    knobs: BatchKnobs,
    tokenizer: PreTrainedTokenizerBase,
    *,
    training: bool,
    noise: NoiseParams | None = None,
    **layout: int,
) -> BatchSettings:
    """Batch settings from the knobs of a training section.

    `training`: whether the batches are trained on. Training forces a masked position in every sequence unless the loss
    weighs by 1/p. Evaluation never does, and always masks at random, so that its losses are comparable.
    `noise`: other noise than the section's.
    `layout`: seed, micro_batch_size, and other `BatchSettings` that differ from their defaults.
    Raises InputError if the tokenizer lacks a token that the knobs need.
    """
    if tokenizer.mask_token_id is None:
        raise InputError("the model's tokenizer must have a mask token; convert adds it")
    noise = noise or knobs.noise
    draws = any(NOISE_TYPES[stage.noise_type].draws for stage in noise.all())
    return BatchSettings(
        noise=noise,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        real_tokens=real_token_ids(tokenizer) if draws else None,
        at_least_one=training and not LOSSES[knobs.loss_impl].weighs_by_inverse_p,
        answer_padding=knobs.padding_of_answers,
        answer_method=knobs.answer_method if training else "random",
        attention=knobs.attention,
        max_length=knobs.max_length,
        pad_to_multiple_of=knobs.pad_to_multiple_of,
        bucket=knobs.bucket,
        **layout,
    )


def real_token_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Sorted ids [R] of ordinary text tokens: no special or added tokens, no embedding rows without a token."""
    import torch

    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    return torch.tensor(sorted(set(tokenizer.get_vocab().values()) - added))
