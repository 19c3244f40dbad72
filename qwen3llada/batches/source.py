"""Samples as micro-batches with noise, the same way in training and evaluation."""

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3llada.batches.loader import (
    AnswerPadding,
    Batch,
    Sample,
    TokenStream,
    make_loader,
    real_token_ids,
    step_plan,
)
from qwen3llada.batches.step_plan import steps_per_epoch
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.diffusion.noise_types import NOISE_TYPES
from qwen3llada.diffusion.params import NoiseParams
from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import AttentionParams

if TYPE_CHECKING:
    from torch import Tensor

    from qwen3llada.batches.micro_batches import TokenDataset


class LossSettings(Protocol):
    """The knobs of a training section that decide what a loss is; evaluation takes them over."""

    @property
    def loss_impl(self) -> str: ...
    @property
    def loss_smoothing(self) -> float: ...
    @property
    def noise(self) -> NoiseParams: ...
    @property
    def attention(self) -> AttentionParams: ...
    @property
    def pad_to_multiple_of(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def bucket(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """The micro-batches of one process, epoch by epoch."""

    dataset: "TokenDataset | TokenStream"
    noise: NoiseParams
    seed: int
    mask_token_id: int
    eos_token_id: int | None
    real_tokens: "Tensor | None"
    at_least_one: bool
    answer_padding: AnswerPadding
    block_length: int
    max_length: int | None
    bucket: int
    pad_to_multiple_of: int
    micro_batch_size: int
    accumulation: int = 1
    num_processes: int = 1
    process_index: int = 0
    num_workers: int = 0

    @property
    def step_size(self) -> int:
        """Samples in an optimiser step of all processes."""
        return self.micro_batch_size * self.accumulation * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        """Raises: InputError for a stream, which has no end."""
        if isinstance(self.dataset, TokenStream):
            raise InputError("max_steps must be above 0: streamed data have no end")
        return steps_per_epoch(len(self.dataset), self.step_size)

    def steps(self, epoch: int, start_step: int = 0, cursors: Mapping[str, Any] | None = None) -> Iterator[list[Batch]]:
        """The micro-batches of each optimiser step of the epoch, from `start_step` on; a stream is one endless epoch.

        `cursors`: what `cursors_after` gave for the step before, in all processes.
        """
        streamed = isinstance(self.dataset, TokenStream)
        loader = make_loader(
            self.dataset,
            self.noise,
            seed=self.seed,
            epoch=epoch,
            mask_token_id=self.mask_token_id,
            micro_batch_size=self.micro_batch_size,
            accumulation=self.accumulation,
            num_processes=self.num_processes,
            process_index=self.process_index,
            start_step=start_step,
            cursors={int(position): cursor for position, cursor in (cursors or {}).items()} if streamed else None,
            bucket=self.bucket,
            answer_padding=self.answer_padding,
            block_length=self.block_length,
            max_length=self.max_length,
            eos_token_id=self.eos_token_id,
            real_tokens=self.real_tokens,
            at_least_one=self.at_least_one,
            pad_to_multiple_of=self.pad_to_multiple_of,
            num_workers=self.num_workers,
        )
        micro_batches: list[Batch] = []
        for batch in _iterate(loader):
            micro_batches.append(batch)
            if batch.step.is_last_micro_batch:
                yield micro_batches
                micro_batches = []

    def cursors_after(self, step: list[Batch], before: Mapping[str, Any]) -> dict[str, Any]:
        """Where this process's part of a stream stands after a step: position -> cursor, as JSON has it.

        Of several processes, the union goes into `steps`. Empty for samples with random access.
        """
        if not isinstance(self.dataset, TokenStream):
            return {}
        found = {int(position): cursor for position, cursor in before.items()}
        for batch in step:
            found |= batch.cursors or {}
        return {str(position): cursor for position, cursor in self.dataset.needed(found).items()}

    def samples_of(self, epoch: int, step: int) -> list[int]:
        """Dataset indices of all samples of an optimiser step; positions in a stream."""
        if isinstance(self.dataset, TokenStream):
            return list(range(step * self.step_size, (step + 1) * self.step_size))
        plan = step_plan(
            self.dataset.lengths, seed=self.seed, epoch=epoch, step_size=self.step_size, bucket=self.bucket
        )
        return plan[step][1].tolist()


def batch_source(
    dataset: "TokenDataset | TokenStream", settings: LossSettings, tokenizer: Any, *, training: bool, **layout: Any
) -> BatchSource:
    """`dataset` under the knobs of a training section.

    `training`: whether the batches are trained on. Then no sequence is left without a masked position, unless the loss
    weighs by 1/p. Evaluation takes the noise as it is drawn, whatever the loss, so that losses can be compared.
    `layout`: seed, micro_batch_size, and what else of `BatchSource` differs from its default.
    Raises: InputError if the tokenizer lacks a token that the knobs need.
    """
    if tokenizer.mask_token_id is None:
        raise InputError("the model's tokenizer must have a mask token; convert adds it")
    return BatchSource(
        at_least_one=training and not LOSSES[settings.loss_impl].weighs_by_inverse_p,
        dataset=dataset,
        noise=settings.noise,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        real_tokens=real_token_ids(tokenizer) if NOISE_TYPES[settings.noise.noise_type].draws else None,
        answer_padding=getattr(settings, "answer_padding", "none"),  # of SFT alone
        bucket=settings.bucket,
        block_length=settings.attention.block_length,
        max_length=settings.max_length,
        pad_to_multiple_of=settings.pad_to_multiple_of,
        **layout,
    )


class Spread:
    """`samples` of a dataset's samples at even distances; all of them for 0 or more than there are."""

    def __init__(self, dataset: "TokenDataset", samples: int):
        self._dataset = dataset
        count = min(samples or len(dataset), len(dataset))
        self._indices = np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)
        self.lengths: NDArray[np.int64] = np.asarray(dataset.lengths)[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[int(self._indices[index])]


def _iterate(loader: Any) -> Iterator[Batch]:
    """An iterator over the loader whose worker processes ignore SIGTERM and SIGINT.

    A signal to the whole process group must not take the workers from under a step that is to be finished. Workers
    inherit the blocked signals; they end with the loader, or when their parent has gone.
    """
    blocked = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
