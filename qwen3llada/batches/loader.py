"""The micro-batches of one rank, in an order and with noise that depend only on (seed, epoch).

Every rank knows the whole step, and so its denominator, before it computes anything. A sample comes out the same for
any number of ranks or workers, any split into micro-batches, and after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from qwen3llada.batches.batch import Batch, StepFacts
from qwen3llada.batches.collate import Collator
from qwen3llada.batches.samples import Sample, TokenDataset, TokenStream
from qwen3llada.batches.settings import BatchSettings
from qwen3llada.batches.step_plan import StepPlan, micro_batches_of, share, step_plan
from qwen3llada.errors import InputError


def make_loader(
    dataset: TokenDataset | TokenStream,
    settings: BatchSettings,
    *,
    epoch: int,
    start_step: int = 0,
    cursors: Mapping[int, Any] | None = None,
) -> DataLoader[Batch]:
    """The micro-batches of one rank, in order, from step `start_step` of the epoch on.

    `dataset`: samples with random access, all or none with a `prompt_length` (SFT), or an endless stream of samples of
    equal length. `cursors`, for a stream: what `needed` kept of the `Batch.cursors` of all ranks.
    Raises InputError for a step that the epoch does not have, and for settings that do not fit the samples.
    """
    batches: MicroBatches | StreamMicroBatches
    if isinstance(dataset, TokenStream):
        collator = Collator(settings=settings, epoch=epoch, sft=False)
        batches = StreamMicroBatches(stream=dataset, collator=collator, start_step=start_step, cursors=cursors or {})
        numbers = None
    else:
        if cursors is not None:
            raise InputError("cursors must be None for a dataset with random access")
        sft = len(dataset) > 0 and dataset[0].prompt_length is not None
        collator = Collator(settings=settings, epoch=epoch, sft=sft)
        plan = step_plan(dataset.lengths, settings, epoch=epoch)
        if not 0 <= start_step <= len(plan):
            raise InputError(f"{start_step=} must be in [0, {len(plan)}], the steps of an epoch")
        batches = MicroBatches(dataset=dataset, plan=plan, collator=collator)
        numbers = range(start_step * settings.gradient_accumulation_steps, len(batches))
    return DataLoader(
        batches,
        sampler=numbers,
        batch_size=None,
        collate_fn=_as_made,
        num_workers=settings.num_workers,
        generator=torch.Generator(),  # its own: the loader would otherwise draw from the global generator
    )


def _check_prompts(samples: Sequence[Sample], indices: NDArray[np.int64], collator: Collator) -> None:
    if any((sample.prompt_length is not None) != collator.sft for sample in samples):
        raise InputError(f"samples {indices.tolist()} must all have a prompt_length or none of them")


def _as_made(batch: Any) -> Any:
    """Replaces the loader's own conversion, which would traverse the batch."""
    return batch


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatches(Dataset[Batch]):
    """Micro-batch number k of this rank in the epoch, as a pure function of k for any worker."""

    dataset: TokenDataset
    plan: StepPlan
    collator: Collator

    def __len__(self) -> int:
        """Micro-batches of each rank in the epoch."""
        settings = self.collator.settings
        last_positions, _ = self.plan[len(self.plan) - 1]
        before = (len(self.plan) - 1) * settings.gradient_accumulation_steps
        return before + micro_batches_of(len(last_positions), settings)

    def __getitem__(self, number: int) -> Batch:
        settings = self.collator.settings
        step, micro_batch = divmod(number, settings.gradient_accumulation_steps)
        positions, dataset_indices = self.plan[step]
        lengths = np.asarray(self.dataset.lengths)[dataset_indices]
        facts = StepFacts(
            number=step,
            micro_batch=micro_batch,
            micro_batches=micro_batches_of(len(positions), settings),
            samples=len(positions),
            tokens=int(self.collator.cut_lengths(lengths, positions, step).sum()),
            longest=int(lengths.max()),
            sft=self.collator.sft,
            **self.collator.facts_of_phase(step),
        )
        taken = share(positions, micro_batch, settings)
        indices = self.plan.order[taken]
        samples = [self.dataset[int(index)] for index in indices]
        _check_prompts(samples, indices, self.collator)
        return self.collator(samples, taken, facts)


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamMicroBatches(IterableDataset[Batch]):
    """The endless micro-batches of this rank from step `start_step` on. Each of W workers makes every W-th."""

    stream: TokenStream
    collator: Collator
    start_step: int
    cursors: Mapping[int, Any]

    def __iter__(self) -> Iterator[Batch]:
        samples = self.stream.read((int(p) for p in chain.from_iterable(self._shares())), self.cursors)
        for number, positions in zip(self._numbers(), self._shares(), strict=True):
            taken = list(islice(samples, len(positions)))
            wrong = [len(sample.tokens) for sample in taken if len(sample.tokens) != self.stream.sample_length]
            if len(taken) < len(positions):
                ended = int(positions[len(taken)])
                raise InputError(f"the stream ended at position {ended}: it must start over instead")
            if wrong:
                raise InputError(f"samples of {wrong} tokens: all of a stream must have {self.stream.sample_length}")
            _check_prompts(taken, positions, self.collator)
            yield self.collator(taken, positions, self._facts(number))

    def _numbers(self) -> Iterator[int]:
        """Micro-batch numbers of this worker. A DataLoader takes from its workers in turn."""
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return count(self.start_step * self.collator.settings.gradient_accumulation_steps + first, stride)

    def _shares(self) -> Iterator[NDArray[np.int64]]:
        settings = self.collator.settings
        for number in self._numbers():
            step, micro_batch = divmod(number, settings.gradient_accumulation_steps)
            yield share(self._positions(step), micro_batch, settings)

    def _positions(self, step: int) -> NDArray[np.int64]:
        size = self.collator.settings.step_size
        return np.arange(step * size, (step + 1) * size)

    def _facts(self, number: int) -> StepFacts:
        settings = self.collator.settings
        step, micro_batch = divmod(number, settings.gradient_accumulation_steps)
        lengths = np.full(settings.step_size, self.stream.sample_length)
        return StepFacts(
            number=step,
            micro_batch=micro_batch,
            micro_batches=settings.gradient_accumulation_steps,
            samples=settings.step_size,
            tokens=int(self.collator.cut_lengths(lengths, self._positions(step), step).sum()),
            longest=self.stream.sample_length,
            sft=False,
            **self.collator.facts_of_phase(step),
        )
