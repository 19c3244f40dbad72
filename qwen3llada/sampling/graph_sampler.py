"""The steps of a request as CUDA graphs: one launch a pass instead of hundreds.

Shapes are rounded up (prompt columns, number of units), so a new prompt length or batch size finds a graph that is
there. "Seen" rows are those of the canvas that the model sees: under guidance the B rows, then the same rows with what
was given masked. Shapes: B rows, R seen rows, U units, Q tokens of a unit, W columns of a block.
"""

import importlib.util
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qwen3llada.sampling.decoding import guidance_canvas, make_head
from qwen3llada.sampling.graphs import Graphs, bucket_columns, bucket_units
from qwen3llada.sampling.packed import KeyValues, unsupported
from qwen3llada.sampling.programs import FillProgram, Shape, StepProgram
from qwen3llada.sampling.request import Request
from qwen3llada.sampling.units import Units

POLICIES = ("full", "block", "block_causal")


def why_not(model: Any, request: Request) -> str | None:
    """Why a request cannot run as CUDA graphs, in one line; None if it can."""
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if request.policy not in POLICIES:
        return f"attention policy {request.policy} has no graph"
    return unsupported(model)


class GraphSampler:
    """Runs the steps of one request as recorded programs."""

    backend = "graph"

    @torch.no_grad()
    def __init__(self, model: Any, request: Request) -> None:
        self.request, self.guided, self.passes = request, request.params.cfg_scale > 0, 0
        self.graphs, self.head = Graphs.of(model), make_head(model, request)
        self.graphs.user = weakref.ref(self)
        canvas = request.canvas
        self.seen = guidance_canvas(canvas, request.mask_token_id) if self.guided else canvas
        self.tokens = canvas.tokens.clone()  # with the finished blocks
        self.start = bucket_columns(canvas.start)  # prompts are padded on the left to this
        self.causal, self.dual = request.policy == "block_causal", request.params.cache == "dual"
        self.whole = request.policy == "full" and not self.dual  # each pass runs the whole canvas
        self.finished: Units | None = None
        answer = canvas.blocks * canvas.block_length if self.causal or self.dual else 0
        self.prefix: KeyValues | None = None
        if not self.whole and self.start + answer:
            self.prefix = self.graphs.prefix(len(self.seen.tokens), self.start + answer)
        if self.prefix is not None and self.start and not self.dual:
            self._fill_canvas(torch.arange(len(self.seen.tokens), device=canvas.tokens.device), canvas.start)

    @torch.no_grad()
    def open(self, units: Units) -> Units:
        if self.graphs.user is None or self.graphs.user() is not self:
            raise RuntimeError("another generation with this model began before this one had ended")
        if self.dual:
            self._fill_canvas(self._seen_rows(units.rows), self.request.canvas.width)
        elif self.causal and self.finished is not None:
            self._fill_block(self.finished)
        queries = self._columns(self.request.canvas.width) if self.whole else units.width
        shape = Shape(units=bucket_units(len(units.rows)), queries=queries, width=units.width, guided=self.guided)
        program, self._replay = self.graphs.step(shape, self.prefix, self.head, self.request.params)
        return self._load(program, units)

    def step(self, units: Units, number: int) -> None:
        self._replay()
        self.passes += 1

    def close(self, units: Units) -> None:
        self.request.canvas.in_blocks(self.tokens)[units.place] = units.tokens
        self.finished = replace(units, tokens=units.tokens.clone())

    def _columns(self, columns: int) -> int:
        """The canvas's columns up to `columns`, after the padding on its left has been rounded up."""
        return columns + self.start - self.request.canvas.start

    def _seen_rows(self, rows: Tensor) -> Tensor:
        """Seen rows [R] of rows of the request [U]."""
        return torch.cat([rows, rows + len(self.request.canvas.tokens)]) if self.guided else rows

    def _seen_tokens(self, tokens: Tensor, given: Tensor) -> Tensor:
        """What the model sees of tokens [U, Q]: [R, Q]."""
        if not self.guided:
            return tokens
        return torch.cat([tokens, tokens.masked_fill(given, self.request.mask_token_id)])

    def _load(self, program: StepProgram, units: Units) -> Units:
        """Put the units into a program's memory. What is returned in their place lives there."""
        canvas, count, width = self.request.canvas, len(units.rows), units.width
        first = 0
        program.canvas.zero_()
        if self.whole:
            first = self.start + int(units.blocks[0]) * canvas.block_length
            program.canvas[:count, self.start - canvas.start :] = self.tokens[units.rows, : canvas.width]
            program.given[:count, self.start - canvas.start :] = canvas.given[units.rows, : canvas.width]
        else:
            program.canvas[:count], program.given[:count] = units.tokens, units.given
        program.masked.zero_()[:count] = units.masked
        program.shares.zero_()[:count], program.keys.zero_()[:count] = units.shares, units.keys
        steps = min(units.counts.shape[1], width)
        program.counts.zero_()[:count, :steps] = units.counts[:, :steps]
        program.column.fill_(first)
        program.step.zero_()
        program.confidence.zero_()
        for half in range(2 if self.guided else 1):
            rows = units.rows + half * len(canvas.tokens)
            self._place(program, half * program.shape.units, rows, None if self.whole else units.blocks)
        return replace(
            units,
            tokens=program.canvas[:count, first : first + width],
            masked=program.masked[:count],
            taken=program.taken[:count],
            confidence=program.confidence[:count],
        )

    def _fill_canvas(self, rows: Tensor, columns: int) -> None:
        """Keys and values of the canvas's first `columns`, as it is now, of seen `rows` [R]."""
        canvas = self.request.canvas
        tokens = self._seen_tokens(self.tokens, canvas.given)[rows, :columns]
        shape = Shape(units=bucket_units(len(rows)), queries=self._columns(columns))
        program, replay = self.graphs.fill(shape, self._store, reads=False)
        program.tokens.zero_()[: len(rows), self.start - canvas.start :] = tokens
        program.columns.copy_(torch.arange(shape.queries, device=rows.device))
        self._place(program, 0, rows, None)
        self._run(program, replay, rows)

    def _fill_block(self, units: Units) -> None:
        """Keys and values of a finished block."""
        rows, blocks = self._seen_rows(units.rows), units.blocks.repeat(2 if self.guided else 1)
        shape = Shape(units=bucket_units(len(rows)), queries=units.width)
        program, replay = self.graphs.fill(shape, self._store, reads=True)
        program.tokens.zero_()[: len(rows)] = self._seen_tokens(units.tokens, units.given)
        first = self.start + blocks[0] * self.request.canvas.block_length
        program.columns.copy_(first + torch.arange(units.width, device=rows.device))
        self._place(program, 0, rows, blocks)
        self._run(program, replay, rows)

    @property
    def _store(self) -> KeyValues:
        assert self.prefix is not None, "only policies with a prefix fill it"
        return self.prefix

    def _run(self, program: FillProgram, replay: Any, rows: Tensor) -> None:
        program.rows.fill_(len(program.store.keys[0]) - 1)[: len(rows)] = rows
        replay()
        self.passes += 1

    def _place(self, program: StepProgram | FillProgram, first: int, rows: Tensor, blocks: Tensor | None) -> None:
        """Positions of seen rows [R], whole (`blocks` None) or one block of each, and what they see.

        They become the program's units from `first` on.
        """
        queries = program.shape.queries
        prompts, lengths = self.seen.prompt_lengths[rows], self.seen.lengths[rows]
        high = torch.full_like(rows, self.start)
        if blocks is None:
            own_low, own_high = self.start - prompts, self.start + lengths
            positions = torch.arange(queries, device=rows.device) - own_low[:, None]
            skip = high
        else:
            offset = blocks * self.request.canvas.block_length
            own_low, own_high = torch.zeros_like(rows), (lengths - offset).clamp(1, queries)
            positions = (prompts + offset)[:, None] + torch.arange(queries, device=rows.device)
            skip = high + offset if self.dual else high
            high = high + (lengths if self.dual else offset if self.causal else 0)
        at = slice(first, first + len(rows))
        ranges = program.ranges
        for buffer, value in (
            (ranges.own_low, own_low),
            (ranges.own_high, own_high.clamp(max=queries)),
            (ranges.owner, rows),
            (ranges.low, self.start - prompts),
            (ranges.high, high),
            (ranges.skip_low, skip),
            (ranges.skip_high, skip + (queries if self.dual else 0)),
        ):
            assert buffer is not None
            buffer[at] = value.to(buffer.dtype)
        angles = self.graphs.packed.angles(positions.clamp(min=0).flatten())
        for angle, value in zip(program.angles, angles, strict=True):
            angle.view(-1, queries, angle.shape[-1])[at] = value.view(*positions.shape, -1)
