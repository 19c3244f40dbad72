"""The settings of batches: what a sample becomes, and how the samples of a step are shared out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.diffusion.noise_types import NOISE_TYPES
from qwen3llada.diffusion.params import NoiseParams
from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import AttentionParams

if TYPE_CHECKING:  # the parameters import this module, and they need no torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

AnswerPadding = Literal["none", "block", "batch"]


class BatchKnobs(Protocol):
    """The knobs of a training section that batches depend on; evaluation takes them over."""

    @property
    def loss_impl(self) -> str: ...
    @property
    def noise(self) -> NoiseParams: ...
    @property
    def attention(self) -> AttentionParams: ...
    @property
    def padding_of_answers(self) -> AnswerPadding: ...
    @property
    def max_length(self) -> int: ...
    @property
    def pad_to_multiple_of(self) -> int: ...
    @property
    def bucket(self) -> int: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchSettings:
    """Everything that batches depend on, beside the samples and the epoch.

    An optimiser step takes the next micro batch × accumulation × processes samples of the epoch's order.
    Raises InputError on values out of range and on combinations that cannot be served.
    """

    seed: int  # of the order of the samples and of the noise
    # What a sample becomes.
    noise: NoiseParams  # how sequences are corrupted
    mask_token_id: int
    eos_token_id: int | None = None  # the token that ends an answer, and that continues it
    real_tokens: Tensor | None = None  # [R] int64, the ids that noise types draw from
    at_least_one: bool = False  # every sample has a masked position, as in `add_noise`
    answer_padding: AnswerPadding = "none"  # continue answers to a whole block, or to the longest sample of the step
    block_length: int = 1  # tokens of a block, for answer_padding="block"
    max_length: int | None = None  # tokens of a sample beyond which no answer is continued
    pad_to_multiple_of: int = 1  # the length of a batch is a multiple of this
    # Which samples a step takes, and who computes them.
    bucket: int = 1  # samples of similar length come in groups of this many (`epoch_order`)
    micro_batch_size: int  # samples in one forward pass of one process
    gradient_accumulation_steps: int = 1  # forward passes in an optimiser step
    num_processes: int = 1  # that train together
    process_index: int = 0  # of this process among them (its rank)
    num_workers: int = 0  # processes that make batches ahead of time; 0: this one makes them when asked

    def __post_init__(self) -> None:
        counts = ("micro_batch_size", "gradient_accumulation_steps", "num_processes")
        for name in (*counts, "block_length", "pad_to_multiple_of", "bucket"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be 1 or more")
        if not 0 <= self.process_index < self.num_processes:
            raise InputError(f"process_index={self.process_index} must be in [0, {self.num_processes})")
        if self.answer_padding != "none" and self.eos_token_id is None:
            raise InputError(f"answer_padding={self.answer_padding} must be none: there is no EOS token")

    @property
    def round_size(self) -> int:
        """Samples in one forward pass of all processes."""
        return self.micro_batch_size * self.num_processes

    @property
    def step_size(self) -> int:
        """Samples in an optimiser step of all processes."""
        return self.round_size * self.gradient_accumulation_steps


def batch_settings(
    knobs: BatchKnobs, tokenizer: PreTrainedTokenizerBase, *, training: bool, **layout: int
) -> BatchSettings:
    """The settings that the knobs of a training section describe.

    `training`: whether the batches are trained on. If so, every sequence has a masked position, unless the loss weighs
    by 1/p. Evaluation takes the noise as it is drawn, whatever the loss, so that losses can be compared.
    `layout`: seed, micro_batch_size, and what else of `BatchSettings` differs from its default.
    Raises InputError if the tokenizer lacks a token that the knobs need.
    """
    if tokenizer.mask_token_id is None:
        raise InputError("the model's tokenizer must have a mask token; convert adds it")
    return BatchSettings(
        noise=knobs.noise,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        real_tokens=real_token_ids(tokenizer) if NOISE_TYPES[knobs.noise.noise_type].draws else None,
        at_least_one=training and not LOSSES[knobs.loss_impl].weighs_by_inverse_p,
        answer_padding=knobs.padding_of_answers,
        block_length=knobs.attention.block_length,
        max_length=knobs.max_length,
        pad_to_multiple_of=knobs.pad_to_multiple_of,
        bucket=knobs.bucket,
        **layout,
    )


def real_token_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Ids of the tokens that text consists of, sorted, [R]: no special or added tokens, no rows without a token."""
    import torch

    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    return torch.tensor(sorted(set(tokenizer.get_vocab().values()) - added))
