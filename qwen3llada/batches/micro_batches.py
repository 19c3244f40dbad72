"""The micro-batches of one process as a torch dataset: over samples with random access, or over a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from qwen3llada.batches.batch import Batch, StepFacts
from qwen3llada.batches.collate import Collator
from qwen3llada.batches.samples import TokenDataset, TokenStream
from qwen3llada.batches.step_plan import Layout, StepPlan
from qwen3llada.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatches(Dataset[Batch]):
    """Micro-batch number k of this process in the epoch: a pure function of k, whichever worker computes it."""

    dataset: TokenDataset
    plan: StepPlan
    layout: Layout
    collator: Collator

    def __len__(self) -> int:
        """Micro-batches of each process in the epoch."""
        last_positions, _ = self.plan[len(self.plan) - 1]
        return (len(self.plan) - 1) * self.layout.accumulation + self.layout.rounds(len(last_positions))

    def __getitem__(self, number: int) -> Batch:
        step, micro_batch = divmod(number, self.layout.accumulation)
        positions, dataset_indices = self.plan[step]
        lengths = np.asarray(self.dataset.lengths)[dataset_indices]
        facts = StepFacts(
            number=step,
            micro_batch=micro_batch,
            micro_batches=self.layout.rounds(len(positions)),
            samples=len(positions),
            tokens=int(self.collator.cut_lengths(lengths, positions).sum()),
            longest=int(lengths.max()),
        )
        share = self.layout.share(positions, micro_batch)
        indices = self.plan.order[share]
        return self.collator([self.dataset[int(index)] for index in indices], share, indices, facts)


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamMicroBatches(IterableDataset[Batch]):
    """The micro-batches of this process from step `start_step` on, endless; each worker makes every W-th of them."""

    stream: TokenStream
    layout: Layout
    collator: Collator
    start_step: int
    cursors: Mapping[int, Any]

    def __iter__(self) -> Iterator[Batch]:
        samples = self.stream.read((int(p) for p in chain.from_iterable(self._shares())), self.cursors)
        for number, share in zip(self._numbers(), self._shares(), strict=True):
            taken = list(islice(samples, len(share)))
            wrong = [len(sample.tokens) for sample in taken if len(sample.tokens) != self.stream.sample_length]
            if len(taken) < len(share):
                raise InputError(f"the stream ended at position {int(share[len(taken)])}: it must start over instead")
            if wrong:
                raise InputError(f"samples of {wrong} tokens: all of a stream must have {self.stream.sample_length}")
            yield self.collator(taken, share, share, self._facts(number))

    def _numbers(self) -> Iterator[int]:
        """Micro-batch numbers of this worker; a DataLoader takes from its workers in turn."""
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return count(self.start_step * self.layout.accumulation + first, stride)

    def _shares(self) -> Iterator[NDArray[np.int64]]:
        for number in self._numbers():
            step, micro_batch = divmod(number, self.layout.accumulation)
            yield self.layout.share(self._positions(step), micro_batch)

    def _positions(self, step: int) -> NDArray[np.int64]:
        return np.arange(step * self.layout.step_size, (step + 1) * self.layout.step_size)

    def _facts(self, number: int) -> StepFacts:
        step, micro_batch = divmod(number, self.layout.accumulation)
        lengths = np.full(self.layout.step_size, self.stream.sample_length)
        return StepFacts(
            number=step,
            micro_batch=micro_batch,
            micro_batches=self.layout.accumulation,
            samples=self.layout.step_size,
            tokens=int(self.collator.cut_lengths(lengths, self._positions(step)).sum()),
            longest=self.stream.sample_length,
        )
