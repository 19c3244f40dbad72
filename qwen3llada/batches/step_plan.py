"""Which samples each optimiser step of an epoch takes, and how ranks share them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3llada.batches.settings import BatchSettings
from qwen3llada.diffusion.keyed_random import Purpose, philox_words
from qwen3llada.errors import InputError


def epoch_order(lengths: NDArray[np.int64], *, seed: int, epoch: int, bucket: int = 1) -> NDArray[np.int64]:
    """Dataset index at each position of the epoch, int64 [n]: a permutation keyed by (seed, epoch).

    With `bucket` > 1 neighbours have similar lengths: each `bucket`^2 samples of the permutation are sorted by
    `lengths` [n] and cut into groups of `bucket`. The groups come in random order and are shuffled inside. The order
    does not depend on the step size, so a sample keeps its position, and thus its noise, for any batch size.
    Samples that fill no whole group stay at the end, unsorted. Raises InputError for no samples and for `bucket` < 1.
    """
    samples = len(lengths)
    if samples < 1:
        raise InputError("the dataset must hold at least one sample")
    if bucket < 1:
        raise InputError(f"{bucket=} must be 1 (no bucketing) or more")
    # argsort of random words gives the same permutation in every numpy version; Generator.permutation may not.
    keys = philox_words(seed, epoch, (0, Purpose.EPOCH_ORDER, 0), 2 * samples)
    order = np.argsort(keys[:samples], kind="stable")
    if bucket == 1 or samples < bucket:
        return order
    head = order[: samples // bucket * bucket]
    window = np.arange(len(head)) // bucket**2
    groups = head[np.lexsort((lengths[head], window))].reshape(-1, bucket)
    shuffle = keys[samples : samples + len(head)].reshape(groups.shape)
    groups = np.take_along_axis(groups, shuffle.argsort(axis=1, kind="stable"), axis=1)
    groups = groups[shuffle[:, 0].argsort(kind="stable")]
    return np.concatenate([groups.ravel(), order[len(head) :]])


@dataclass(frozen=True)
class StepPlan:
    """The optimiser steps of an epoch. Step k takes positions k·step_size … of `order` [n]; the last takes the rest.

    The last step is kept even if it is small, so that an epoch covers every sample for any number of ranks. A rank
    without a sample in it takes part with a batch of padding.
    """

    order: NDArray[np.int64]
    step_size: int

    def __len__(self) -> int:
        return steps_per_epoch(len(self.order), self.step_size)

    def __getitem__(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions in the epoch's order and dataset indices of step number `step`: two int64 arrays [samples]."""
        if not 0 <= step < len(self):
            raise IndexError(f"{step=} must be in [0, {len(self)})")
        positions = np.arange(step * self.step_size, min((step + 1) * self.step_size, len(self.order)))
        return positions, self.order[positions]


def steps_per_epoch(samples: int, step_size: int) -> int:
    """Optimiser steps in an epoch of `samples` samples, the last possibly smaller."""
    return -(-samples // step_size)


def step_plan(lengths: NDArray[np.int64], settings: BatchSettings, *, epoch: int) -> StepPlan:
    """The steps of an epoch, the same on every rank. `lengths` [n]: tokens of each sample.

    Raises InputError as `epoch_order`.
    """
    order = epoch_order(np.asarray(lengths), seed=settings.seed, epoch=epoch, bucket=settings.bucket)
    return StepPlan(order, settings.step_size)


def micro_batches_of(samples: int, settings: BatchSettings) -> int:
    """Micro-batches in a step of `samples` samples. The same number on every rank."""
    return -(-samples // settings.round_size)


def share(positions: NDArray[np.int64], micro_batch: int, settings: BatchSettings) -> NDArray[np.int64]:
    """This rank's positions in micro-batch number `micro_batch` of a step. An even split, which may be empty."""
    of_all = positions[micro_batch * settings.round_size : (micro_batch + 1) * settings.round_size]
    return np.array_split(of_all, settings.num_processes)[settings.process_index]
