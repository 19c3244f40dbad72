"""The optimiser steps of an epoch from samples, for training and evaluation alike."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qwen3llada.batches.batch import Batch, StepFacts
from qwen3llada.batches.loader import make_loader
from qwen3llada.batches.samples import TokenDataset, TokenStream
from qwen3llada.batches.settings import BatchSettings
from qwen3llada.batches.step_plan import step_plan, steps_per_epoch
from qwen3llada.diffusion.losses import MaskedLoss
from qwen3llada.errors import InputError


@dataclass(frozen=True)
class Step:
    """An optimiser step: the micro-batches of this rank, and facts about the whole step."""

    micro_batches: list[Batch]
    figures: Mapping[str, float] = field(default_factory=dict)  # what is known of its data, to be drawn as curves

    @property
    def facts(self) -> StepFacts:
        """Facts about the step. Only the micro-batch number differs between micro-batches; ranks agree."""
        return self.micro_batches[-1].step

    @property
    def tokens(self) -> int:
        """Real tokens of the step, over all ranks."""
        return self.facts.tokens

    def denominator(self, loss: MaskedLoss) -> float:
        """Divisor of the summed `loss` over all micro-batches and ranks; at least 1, for a step without tokens."""
        return max(1.0, self.facts.denominator(loss))


@dataclass(frozen=True)
class Source:
    """Samples, and the settings that turn them into optimiser steps."""

    dataset: TokenDataset | TokenStream
    settings: BatchSettings

    @property
    def steps_per_epoch(self) -> int:
        """Raises InputError for a stream, which has no end."""
        if isinstance(self.dataset, TokenStream):
            raise InputError("max_steps must be above 0: streamed data have no end")
        return steps_per_epoch(len(self.dataset), self.settings.step_size)

    def in_run(self, total_steps: int) -> Source:
        """The same source for a run of `total_steps` optimiser steps, in which settings may change."""
        steps = 0 if isinstance(self.dataset, TokenStream) else self.steps_per_epoch
        settings = replace(self.settings, total_steps=total_steps, steps_per_epoch=steps)
        return replace(self, settings=settings)

    def steps(self, epoch: int, start_step: int = 0, cursors: Mapping[str, Any] | None = None) -> Iterator[Step]:
        """The optimiser steps of the epoch, from `start_step` on. A stream is one endless epoch.

        `cursors`: the merged results of `cursors_after` of all ranks for the previous step.
        """
        streamed = isinstance(self.dataset, TokenStream)
        at = {int(position): cursor for position, cursor in (cursors or {}).items()} if streamed else None
        loader = make_loader(self.dataset, self.settings, epoch=epoch, start_step=start_step, cursors=at)
        micro_batches: list[Batch] = []
        for batch in _iterate(loader):
            micro_batches.append(batch)
            if batch.step.is_last_micro_batch:
                yield Step(micro_batches)
                micro_batches = []

    def cursors_after(self, step: Step, before: Mapping[str, Any]) -> dict[str, Any]:
        """Cursors of this rank's part of a stream after a step: position -> cursor, with JSON's string keys.

        The union over all ranks goes into `steps`. Empty for samples with random access.
        """
        if not isinstance(self.dataset, TokenStream):
            return {}
        found = {int(position): cursor for position, cursor in before.items()}
        for batch in step.micro_batches:
            found |= batch.cursors or {}
        return {str(position): cursor for position, cursor in self.dataset.needed(found).items()}

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint must hold beside the position: nothing, samples come from files. All ranks must call it."""
        return None

    def samples_of(self, epoch: int, step: int) -> list[int]:
        """Dataset indices of all samples of an optimiser step. For a stream, positions."""
        if isinstance(self.dataset, TokenStream):
            size = self.settings.step_size
            return list(range(step * size, (step + 1) * size))
        return step_plan(self.dataset.lengths, self.settings, epoch=epoch)[step][1].tolist()


def _iterate(loader: Any) -> Iterator[Batch]:
    """Iterate over the loader, with worker processes that ignore SIGTERM and SIGINT.

    A signal to the whole process group must not kill workers while the current step is being finished. Workers inherit
    the blocked signals. They end with the loader, or when their parent is gone.
    """
    blocked = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
