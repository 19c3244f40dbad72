"""The steps of a request as CUDA graphs: one launch per forward pass instead of hundreds.

Shapes (prompt columns, number of units) are rounded up, so that a new prompt length or batch size often finds an
existing graph. "Seen" rows are the rows of the model's input: the B rows of the canvas and, under guidance, the same
rows again with all given tokens masked. Shapes: B rows, R seen rows, U units, Q tokens of a unit, W columns of a block.
"""

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qwen3llada.modeling.attention import POLICIES, is_causal, plan
from qwen3llada.sampling.cuda.attention_ranges import Blocks, Range
from qwen3llada.sampling.cuda.logits_kernel import Form, knob_values
from qwen3llada.sampling.cuda.packed_model import KeyValues
from qwen3llada.sampling.cuda.pass_inputs import Places
from qwen3llada.sampling.cuda.program_cache import Graphs, bucket_columns, bucket_units, by_length
from qwen3llada.sampling.cuda.step_programs import FillProgram, ProgramShape, StepProgram, Variant, chunks_for
from qwen3llada.sampling.head import make_head
from qwen3llada.sampling.open_blocks import Units
from qwen3llada.sampling.request import Request
from qwen3llada.sampling.unmasking import UNMASKING


class GraphSampler:
    """Runs the steps of one request as CUDA graphs."""

    backend = "graph"

    @torch.no_grad()
    def __init__(self, model: Any, request: Request, tokens: Tensor) -> None:
        """`tokens` [B, L] is the canvas; the caller enters decoded tokens into it."""
        self.request, self.tokens, self.guided, self.passes = request, tokens, request.params.cfg_scale > 0, 0
        self.graphs, self.head = Graphs.of(model), make_head(model, request)
        self.graphs.user = weakref.ref(self)
        self.positions = model.config.max_position_embeddings
        layout = request.layout
        self.rows = len(tokens)
        (policy,) = plan(request.policy)  # only requests of one policy get here
        self.start = bucket_columns(layout.start)  # prompts are left-padded to this
        everything = self.start // layout.block_length + 1 + layout.blocks  # at least the number of blocks
        self.window = min(everything, model.config.window_blocks) if POLICIES[policy].windowed else everything
        self.causal, self.dual = is_causal(request.policy), request.params.cache == "dual"
        self.whole = request.policy == "full" and not self.dual  # each pass runs the whole canvas
        self.form, self.knobs = Form.of(request.params), knob_values(request.params)
        self.finished: Units | None = None  # the block that was closed last
        self.prepared: tuple[Units, Units] | None = None  # units, and what opening them has given
        answer = layout.blocks * layout.block_length if self.causal or self.dual else 0
        self.prefix: KeyValues | None = None
        if not self.whole and self.start + answer:
            self.prefix = self.graphs.prefix(self.rows * (2 if self.guided else 1), self.start + answer)
        if self.prefix is not None and self.start and not self.dual:
            for rows in by_length(layout.prompt_lengths):
                columns = bucket_columns(int(layout.prompt_lengths[rows].max()))
                self._fill_canvas(rows, self.start - columns, self.start)

    def prepare(self, units: Units) -> None:
        if units.counts.any() and not self.dual:  # otherwise opening may run a pass
            self.prepared = units, self._open(units)

    def open(self, units: Units) -> Units:
        prepared, self.prepared = self.prepared, None
        return prepared[1] if prepared is not None and prepared[0] is units else self._open(units)

    @torch.no_grad()
    def _open(self, units: Units) -> Units:
        if self.graphs.user is None or self.graphs.user() is not self:
            raise RuntimeError("another generation with this model began before this one had ended")
        if self.dual:
            self._fill_canvas(units.rows, 0, self._columns(self.request.layout.width))
        whole_block = self.request.layout.block_length
        shape = ProgramShape(
            units=bucket_units(len(units.rows)),
            queries=self._columns(self.request.layout.width) if self.whole else units.width,
            width=units.width,
            guided=self.guided,
            before=whole_block if self.causal else 0,
        )
        self._variants = [Variant(chunks) for chunks in self._chunks_of_steps(units, shape)]
        finished = self._finished_of(units.rows)
        if finished is not None and not self._variants:  # a block without masks has no step to join
            self._fill_block(finished)
        elif finished is not None:
            self._variants[0] = self._variants[0]._replace(joined=True)
        blocks = Blocks(whole_block, self.window, shift=0) if self.causal else None
        self._program = self.graphs.step(shape, self.prefix, self.head, self.form, set(self._variants), blocks=blocks)
        if finished is not None and self._variants:
            self._load_finished(self._program, finished)
        return self._load(self._program, units)

    def step(self, units: Units, number: int) -> None:
        self._program.replay(self._variants[number])
        self.passes += 1

    def close(self, units: Units) -> None:
        if self.causal:
            self.finished = replace(units, tokens=units.tokens.clone())

    def _finished_of(self, rows: Tensor) -> Units | None:
        """The block that was finished last, of those rows that go on: `rows` [U]."""
        finished = self.finished
        if finished is None or len(finished.rows) == len(rows):
            return finished
        kept = torch.searchsorted(finished.rows, rows)  # both ascending
        there = kept.to(finished.tokens.device)
        return replace(
            finished, rows=rows, blocks=finished.blocks[kept], tokens=finished.tokens[there],
            given=finished.given[there],
        )  # fmt: skip

    def _chunks_of_steps(self, units: Units, shape: ProgramShape) -> list[int]:
        """Chunks of logits that each step needs until everything is committed; all chunks if that is not planned."""
        everything = shape.units * shape.width
        left, chunks = int(units.counts.sum()), list[int]()
        if UNMASKING[self.request.params.unmask].knob is not None:
            return [chunks_for(everything, everything)] * units.width if left else []
        for committed in units.counts.sum(0).tolist():
            if left:  # steps after the last commit are never run
                chunks.append(chunks_for(left, everything))
            left -= committed
        return chunks

    def _columns(self, columns: int) -> int:
        """Width of the canvas's first `columns` columns in a program, where the left padding is rounded up."""
        return columns + self.start - self.request.layout.start

    def _seen_rows(self, rows: Tensor) -> Tensor:
        """Seen rows [R] of request rows [U]."""
        return torch.cat([rows, rows + self.rows]) if self.guided else rows

    def _seen_tokens(self, tokens: Tensor, given: Tensor) -> Tensor:
        """The model's input [R, Q] for tokens [U, Q]."""
        if not self.guided:
            return tokens
        return torch.cat([tokens, tokens.masked_fill(given, self.request.mask_token_id)])

    def _load(self, program: StepProgram, units: Units) -> Units:
        """Copy the units into a program's memory. The returned units are views of it."""
        canvas, count, width = self.request.canvas, len(units.rows), units.width
        first = 0
        program.canvas.zero_()
        if self.whole:
            first = self.start + int(units.blocks[0]) * canvas.block_length
            program.canvas[:count, self.start - canvas.start :] = self.tokens[units.place[0], : canvas.width]
            program.given[:count, self.start - canvas.start :] = canvas.given[units.place[0], : canvas.width]
        else:
            program.canvas[:count], program.given[:count] = units.tokens, units.given
        program.masked.zero_()[:count] = units.masked
        steps = min(units.counts.shape[1], width)
        for buffer, value in (
            (program.shares, units.shares),
            (program.keys, units.keys),
            (program.counts.zero_()[:, :steps], units.counts[:, :steps].int()),
        ):
            buffer[:count].copy_(value, non_blocking=True)
        program.knobs.copy_(self.knobs[:, None], non_blocking=True)
        program.column.fill_(first)
        torch.add(
            torch.arange(program.shape.units, device=self.tokens.device) * program.shape.queries,
            first,
            out=program.origins,
        )
        program.steps.zero_()
        program.confidence.zero_()
        for half in range(2 if self.guided else 1):
            rows, blocks = units.rows + half * self.rows, None if self.whole else units.blocks
            self._place(program.places, half * program.shape.units, rows, blocks)
        return replace(
            units,
            tokens=program.canvas[:count, first : first + width],
            masked=program.masked[:count],
            taken=program.taken[:count],
            confidence=program.confidence[:count],
        )

    def _load_finished(self, program: StepProgram, units: Units) -> None:
        """Let the block that was finished before join the program's first pass."""
        assert program.joined is not None
        (places, stored), half = program.joined, program.shape.units
        tokens, rows = self._seen_tokens(units.tokens, units.given), self._seen_rows(units.rows)
        stored.clear()
        for i in range(2 if self.guided else 1):
            part = slice(i * len(units.rows), (i + 1) * len(units.rows))
            stored.fill(i * half, tokens[part], rows[part], self._column(units))
            self._place(places, i * half, rows[part], units.blocks)

    def _column(self, units: Units) -> int:
        """The prefix's column at which the block of `units` begins."""
        return self.start + int(units.blocks[0]) * self.request.layout.block_length

    def _fill_canvas(self, rows: Tensor, first: int, last: int) -> None:
        """Fill the prefix's columns from `first` up to `last` with keys and values of rows [U] of the canvas."""
        canvas, layout = self.request.canvas, self.request.layout
        added = self.start - layout.start  # columns of padding that the canvas does not have
        at = (rows.to(self.tokens.device), slice(max(0, first - added), last - added))
        tokens, seen = self._seen_tokens(self.tokens[at], canvas.given[at]), self._seen_rows(rows)
        shape = ProgramShape(units=bucket_units(len(seen)), queries=last - first)
        aligned_to_end = -shape.queries % layout.block_length
        blocks = Blocks(layout.block_length, self.window, aligned_to_end) if self.causal else None
        program = self.graphs.fill(shape, self._store, reads=False, blocks=blocks)
        program.stored.clear()
        program.stored.fill(0, tokens, seen, first)
        self._place(program.places, 0, seen, None, first)
        self._run(program)

    def _fill_block(self, units: Units) -> None:
        """Fill the prefix with keys and values of a finished block."""
        rows, blocks = self._seen_rows(units.rows), units.blocks.repeat(2 if self.guided else 1)
        shape = ProgramShape(units=bucket_units(len(rows)), queries=units.width)
        program = self.graphs.fill(shape, self._store, reads=True)
        program.stored.clear()
        program.stored.fill(0, self._seen_tokens(units.tokens, units.given), rows, self._column(units))
        self._place(program.places, 0, rows, blocks)
        self._run(program)

    @property
    def _store(self) -> KeyValues:
        assert self.prefix is not None, "only policies with a prefix fill it"
        return self.prefix

    def _run(self, program: FillProgram) -> None:
        program.replay(FillProgram.VARIANT)
        self.passes += 1

    def _place(self, places: Places, first: int, rows: Tensor, blocks: Tensor | None, column: int = 0) -> None:
        """Make seen rows [R] the units of `places` from `first` on: whole rows (`blocks` None) or one block of each."""
        layout, queries = self.request.layout, places.queries
        prompts, lengths = layout.prompt_lengths[rows % self.rows], layout.lengths[rows % self.rows]
        ranges = torch.zeros(len(Range), len(rows), dtype=torch.int32)
        ranges[Range.OWNER], ranges[Range.LOW], ranges[Range.HIGH] = rows, self.start - prompts, self.start
        if blocks is None:
            begin = self.start - prompts - column
            ranges[Range.OWN_LOW] = begin
            ranges[Range.OWN_HIGH] = (begin + prompts + lengths).clamp(max=queries)
            positions = torch.arange(queries) - begin[:, None]
        else:
            offset = blocks * layout.block_length
            ranges[Range.OWN_HIGH] = (lengths - offset).clamp(1, queries)
            if self.causal:
                ranges[Range.HIGH] += offset
                seen = ranges[Range.HIGH] - self.window * layout.block_length
                ranges[Range.LOW] = ranges[Range.LOW].maximum(seen)
            if self.dual:
                ranges[Range.HIGH] += lengths
                ranges[Range.SKIP_LOW], ranges[Range.SKIP_HIGH] = (self.start + offset + n for n in (0, queries))
            positions = (prompts + offset)[:, None] + torch.arange(queries)
        places.fill(first, positions.clamp(0, self.positions - 1).int(), ranges)
