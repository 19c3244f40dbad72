"""The steps of a request as CUDA graphs: one launch per forward pass instead of hundreds.

Shapes (prompt columns, number of units) are rounded up, so that a new prompt length or batch size often finds an
existing graph. "Seen" rows are the rows of the model's input: the B rows of the canvas and, under guidance, the same
rows again with all given tokens masked. Shapes: B rows, R seen rows, U units, Q tokens of a unit, W columns of a block.
"""

import importlib.util
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qwen3llada.modeling.attention import POLICIES, is_causal, plan
from qwen3llada.sampling.cuda.attention_kernel import Blocks, Range
from qwen3llada.sampling.cuda.packed_model import KeyValues, unsupported
from qwen3llada.sampling.cuda.program_cache import Graphs, bucket_columns, bucket_units
from qwen3llada.sampling.cuda.step_programs import FillProgram, Program, ProgramShape, StepProgram, chunks_for
from qwen3llada.sampling.head import make_head
from qwen3llada.sampling.open_blocks import Units
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.request import Request

# A list, not a field of `Policy`: the attention kernel sees keys by ranges (`Range`), which `_place` fills for these
# policies. A policy that is not here runs eagerly, whatever its comparison is.
GRAPHED_POLICIES = ("full", "block", "block_causal", "window")
GRAPHED_UNMASKING = ("fixed", "threshold")  # what the kernels and `StepProgram` commit by


def why_not(model: Any, request: Request) -> str | None:
    """Why a request cannot run as CUDA graphs, in one line; None if it can."""
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if request.policy not in GRAPHED_POLICIES:
        return f"attention policy {request.policy} has no graph; {', '.join(GRAPHED_POLICIES)} have one"
    return unknown_knob(request.params) or unsupported(model)


def unknown_knob(params: DecodeParams) -> str | None:
    """The first knob that the step programs do not have, in one line."""
    if params.unmask not in GRAPHED_UNMASKING:
        return f"unmask={params.unmask} has no graph; {', '.join(GRAPHED_UNMASKING)} have one"
    unknown = (name for name in ("position_temperature", "edit_threshold", "remask") if getattr(params, name))
    return next((f"{name}={getattr(params, name)} has no graph; 0 has one" for name in unknown), None)


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
        everything = layout.tokens.shape[1] // layout.block_length  # number of blocks on the canvas
        (policy,) = plan(request.policy)  # only requests of one policy get here
        windowed = POLICIES[policy].windowed
        self.window = min(everything, model.config.window_blocks) if windowed else everything
        self.start = bucket_columns(layout.start)  # prompts are left-padded to this
        self.causal, self.dual = is_causal(request.policy), request.params.cache == "dual"
        self.whole = request.policy == "full" and not self.dual  # each pass runs the whole canvas
        self.finished: Units | None = None
        answer = layout.blocks * layout.block_length if self.causal or self.dual else 0
        self.prefix: KeyValues | None = None
        if not self.whole and self.start + answer:
            self.prefix = self.graphs.prefix(self.rows * (2 if self.guided else 1), self.start + answer)
        if self.prefix is not None and self.start and not self.dual:
            self._fill_canvas(torch.arange(self.rows), layout.start)

    @torch.no_grad()
    def open(self, units: Units) -> Units:
        if self.graphs.user is None or self.graphs.user() is not self:
            raise RuntimeError("another generation with this model began before this one had ended")
        if self.dual:
            self._fill_canvas(units.rows, self.request.layout.width)
        elif self.causal and self.finished is not None:
            self._fill_block(self.finished)
        queries = self._columns(self.request.layout.width) if self.whole else units.width
        shape = ProgramShape(
            units=bucket_units(len(units.rows)), queries=queries, width=units.width, guided=self.guided
        )
        self._chunks = self._chunks_of_steps(units, shape)
        self._program = self.graphs.step(shape, self.prefix, self.head, self.request.params, set(self._chunks))
        return self._load(self._program, units)

    def step(self, units: Units, number: int) -> None:
        self._program.replay(self._chunks[number])
        self.passes += 1

    def close(self, units: Units) -> None:
        if self.causal:
            self.finished = replace(units, tokens=units.tokens.clone())

    def _chunks_of_steps(self, units: Units, shape: ProgramShape) -> list[int]:
        """Chunks of logits that each step needs until everything is committed; all chunks under threshold unmasking."""
        everything = shape.units * shape.width
        if self.request.params.unmask == "threshold":
            return [chunks_for(everything, everything)] * units.width
        left, chunks = int(units.counts.sum()), []
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
        program.column.fill_(first)
        program.step.zero_()
        program.confidence.zero_()
        for half in range(2 if self.guided else 1):
            rows, blocks = units.rows + half * self.rows, None if self.whole else units.blocks
            self._place(program, half * program.shape.units, rows, blocks)
        return replace(
            units,
            tokens=program.canvas[:count, first : first + width],
            masked=program.masked[:count],
            taken=program.taken[:count],
            confidence=program.confidence[:count],
        )

    def _fill_canvas(self, rows: Tensor, columns: int) -> None:
        """Fill the prefix with keys and values of the current canvas's first `columns`, for rows `rows` [U]."""
        canvas, layout = self.request.canvas, self.request.layout
        at = (rows.to(self.tokens.device), slice(0, columns))
        tokens, seen = self._seen_tokens(self.tokens[at], canvas.given[at]), self._seen_rows(rows)
        shape = ProgramShape(units=bucket_units(len(seen)), queries=self._columns(columns))
        blocks = Blocks(layout.block_length, self.window) if self.causal else None
        program = self.graphs.fill(shape, self._store, reads=False, blocks=blocks)
        program.tokens.zero_()[: len(seen), self.start - canvas.start :] = tokens
        program.columns.copy_(torch.arange(shape.queries), non_blocking=True)
        self._run(program, seen, None)

    def _fill_block(self, units: Units) -> None:
        """Fill the prefix with keys and values of a finished block."""
        rows, blocks = self._seen_rows(units.rows), units.blocks.repeat(2 if self.guided else 1)
        shape = ProgramShape(units=bucket_units(len(rows)), queries=units.width)
        program = self.graphs.fill(shape, self._store, reads=True)
        program.tokens.zero_()[: len(rows)] = self._seen_tokens(units.tokens, units.given)
        first = self.start + blocks[0] * self.request.layout.block_length
        program.columns.copy_(first + torch.arange(units.width), non_blocking=True)
        self._run(program, rows, blocks)

    @property
    def _store(self) -> KeyValues:
        assert self.prefix is not None, "only policies with a prefix fill it"
        return self.prefix

    def _run(self, program: FillProgram, rows: Tensor, blocks: Tensor | None) -> None:
        self._place(program, 0, rows, blocks)
        program.rows.fill_(program.spare)[: len(rows)].copy_(rows, non_blocking=True)
        program.replay()
        self.passes += 1

    def _place(self, program: Program, first: int, rows: Tensor, blocks: Tensor | None) -> None:
        """Make seen rows [R] the program's units from `first` on: whole rows (`blocks` None) or one block of each."""
        layout, queries = self.request.layout, program.shape.queries
        prompts, lengths = layout.prompt_lengths[rows % self.rows], layout.lengths[rows % self.rows]
        ranges = torch.zeros(len(Range), len(rows), dtype=torch.int32)
        ranges[Range.OWNER], ranges[Range.LOW], ranges[Range.HIGH] = rows, self.start - prompts, self.start
        if blocks is None:
            ranges[Range.OWN_LOW] = self.start - prompts
            ranges[Range.OWN_HIGH] = (self.start + lengths).clamp(max=queries)
            positions = torch.arange(queries) - (self.start - prompts)[:, None]
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
        program.place(first, positions.clamp(0, self.positions - 1).int(), ranges)
