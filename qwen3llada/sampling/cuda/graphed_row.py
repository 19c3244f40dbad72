"""A row of a running batch whose steps are CUDA graphs: what the host knows of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from qwen3llada.sampling.block_contexts import Policy
from qwen3llada.sampling.cuda.logits_kernel import Form, knob_values
from qwen3llada.sampling.cuda.running_units import Extent, Kept, Unit, units_of
from qwen3llada.sampling.open_blocks import Units, waves
from qwen3llada.sampling.request import Request
from qwen3llada.sampling.running_row import RunningRow
from qwen3llada.sampling.unmasking import UNMASKING


class Kind(NamedTuple):
    """Rows of one kind share passes."""

    policy: Policy
    block_length: int
    form: Form  # without `draws`: a row of temperature 0 can be in a program that draws, with noise times 0

    @classmethod
    def of(cls, request: Request) -> "Kind":
        form = Form.of(request.params)._replace(draws=False)
        return cls(request.policy, request.layout.block_length, form)


class Planned(NamedTuple):
    """One step of a row."""

    row: "GraphedRow"
    block: Units
    last: bool  # whether it is known to be the last step of the block
    masked: int  # at most so many positions of the block are masked before it
    units: tuple[Unit, ...]  # one of them is decoded
    step: tuple[int, ...]  # what is decoded reads: `shared_step.Input` from `KEY` on


@dataclass(kw_only=True, eq=False)
class GraphedRow(RunningRow):
    """One request. `request.canvas` is on the CPU; steps are planned before the results of earlier ones are known."""

    spans: tuple[int, ...]  # first column in the memory; under guidance the second is that of the masked prompt
    kept_by: Kept
    window: int  # blocks before its own that a block sees, under causal policies
    kept: int = 0  # columns whose keys and values are stored and final
    units: Units | None = None  # the block that is being decoded
    number: int = 0  # of its next step
    masked: int = 0  # at most so many of its positions are masked when that step begins
    planned: bool = False  # all steps of the block are planned, but their results are not known yet
    gone: bool = False  # left the batch
    knobs: tuple[int, ...] = field(init=False)  # bits of the parameters, see `logits_kernel.Knob`

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kind, self.draws = Kind.of(self.request), self.request.params.temperature > 0
        self.knobs = tuple(knob_values(self.request.params).numpy().view(np.int64).tolist())
        self.canvas, self.sure = self.tokens[0].numpy(), self.confidence[0].numpy()  # views
        self.fixed = UNMASKING[self.request.params.unmask].knob is None
        self._blocks: Iterator[Units] = waves(self.request, self.tokens)
        self.open_next()

    def open_next(self) -> None:
        """Go on to the next block with masks, or finish. The tokens of the blocks before must be known."""
        for units in self._blocks:
            self.masked, self.number, self.planned = int(units.masked.sum()), 0, False
            if self.masked:
                layout = self.request.layout
                self.units, self.first = units, layout.start + int(units.blocks[0]) * layout.block_length
                self._counts = [count for count in units.counts[0].tolist() if count]
                self._of_block = int(units.keys[0]), int(units.shares[0])
                return
        self.units, self.finished = None, True

    def plan(self) -> "Planned":
        """Plan the next step."""
        assert self.units is not None
        layout, masked = self.request.layout, self.masked
        extent = Extent(self.kept, layout.start, self.first, layout.width, layout.block_length)
        if self.kept_by is not Kept.NOTHING:
            self.kept = self.first if self.kept_by is Kept.BLOCKS else layout.start
        (key, share), count = self._of_block, self._counts[self.number] if self.fixed else 0
        step = key, self.number, share, count, *self.knobs
        self.number += 1
        self.masked -= count
        self.planned = self.fixed and self.number == len(self._counts)
        return Planned(
            row=self,
            block=self.units,
            last=self.planned,
            masked=masked,
            units=tuple(units_of(self.kept_by, extent, self.window)),
            step=step,
        )

    def see(self, planned: "Planned", tokens: np.ndarray, confidence: np.ndarray) -> bool:
        """Learn the result of a planned step: tokens and confidences [W] of the block. Whether it was a step at all.

        Under other than fixed unmasking a step may have been planned before it was known that the block had ended.
        """
        if self.gone or planned.block is not self.units:
            return False
        at, last = slice(self.first, self.first + planned.block.width), planned.last
        self.canvas[at] = tokens[: planned.block.width]
        self.sure[at] += confidence[: planned.block.width]
        self.passes += 1
        if not self.fixed:
            masked = self.canvas[at] == self.request.mask_token_id
            self.masked = int((masked & planned.block.decoded[0].numpy()).sum())
            last = self.masked == 0
        if last:
            self.open_next()
        return True
