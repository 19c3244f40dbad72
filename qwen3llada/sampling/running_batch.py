"""A batch that runs on while rows enter and leave it: continuous batching at block boundaries.

    batch = RunningBatch(model)
    row = batch.enter(request_of_one_row)        # before any pass; its first block is decoded by the next one
    for row in batch.step(): ...                 # one pass for every row in it, wherever each of them is
    batch.leave(row)                             # before any pass; finished rows leave of themselves

Each row has its own parameters, its own number of steps, and gets the tokens that it would get alone: passes compute
the same function row by row, and noise depends on a row's key, block and step alone. A row that finishes its block goes
on with the next one in the next pass, whatever the others do. On a GPU the passes are CUDA graphs (`RunningGraphs`);
rows that have none run eagerly beside them.

Shapes: L columns of a row's canvas, U rows of a step (units, each one block), W columns of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qwen3llada.sampling.block_contexts import Policy
from qwen3llada.sampling.decoding import say_once
from qwen3llada.sampling.eager import StepRule
from qwen3llada.sampling.open_blocks import Units, waves
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.request import Request
from qwen3llada.sampling.running_row import RunningRow
from qwen3llada.sampling.shared_pass import SharedPasses, Span

NOT_OF_A_STEP = {"steps", "gen_length", "block_length", "block_attention", "backend"}
"""Parameters that a step does not read: rows that differ in these alone are scored and committed together."""

CHANGED_PLACES, CHANGED = ("tokens", "masked", "taken", "confidence", "log_prob"), ("edits", "finished")
"""Fields of `Units`, [U, W] and [U], that a step changes in place."""


def shares_passes(params: DecodeParams) -> bool:
    """Whether rows with these parameters can be in a running batch.

    Decoding all blocks at once and the approximate cache treat the blocks of a whole batch alike, so they cannot.
    """
    return not params.parallel_blocks and params.cache == "none"


@dataclass(kw_only=True, eq=False)
class Row(RunningRow):
    """One request that is decoded eagerly."""

    slots: tuple[int, ...]  # in the cache; under guidance the second is that of the masked prompt
    rule: StepRule
    units: Units | None = None  # the block that is being decoded
    number: int = 0  # step of that block
    kept: int = 0  # columns whose keys and values are computed and final

    def __post_init__(self) -> None:
        super().__post_init__()
        self._steps = self._script()

    def _script(self) -> Iterator[int]:
        """The row's steps, as `decoding.decode` takes them. Between two of them the step is run on `units`."""
        in_blocks = self.request.canvas.in_blocks
        for units in waves(self.request, self.tokens):
            self.units = units
            for number in units.step_numbers(self.request.params):
                yield number
                in_blocks(self.tokens)[units.place] = units.tokens
                in_blocks(self.confidence)[units.place] = units.confidence
                if self.settled is not None:
                    in_blocks(self.settled)[units.place] = units.settled()
        self.units = None

    def advance(self) -> None:
        """Go on to the next step, or finish."""
        number = next(self._steps, None)
        self.number, self.finished = number or 0, number is None

    def spans(self, *, keeps: bool, causal: bool) -> list[Span]:
        """What the row asks of the next pass: one span, or two under guidance. To be called once before a pass."""
        assert self.units is not None, "a finished row leaves the batch"
        self.rule.before_pass(self.units, self.number)
        self.request.canvas.in_blocks(self.tokens)[self.units.place] = self.units.tokens
        canvas, block = self.request.layout, int(self.units.blocks[0])
        first = canvas.start + block * canvas.block_length
        last = first + self.units.width
        if keeps:  # what is final and not computed yet, and the block
            prefix = first if causal else canvas.start
            columns = torch.cat([torch.arange(self.kept, prefix), torch.arange(first, last)])
            self.kept, place = prefix, slice(len(columns) - self.units.width, len(columns))
        else:
            columns, place = torch.arange(canvas.width), slice(first, last)
        tokens = self.tokens[0].cpu()
        hidden = tokens.masked_fill(canvas.given[0], self.request.mask_token_id)
        return [
            Span(
                slot=slot,
                prompt=canvas.start,
                block_length=canvas.block_length,
                columns=columns,
                tokens=seen[columns],
                block=place,
            )
            for slot, seen in zip(self.slots, (tokens, hidden), strict=False)
        ]


class RunningBatch:
    """The rows that are decoded now. Not safe for use by several threads."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rows: list[Row] = []  # those that are decoded eagerly
        self._passes: dict[Policy, SharedPasses] = {}
        self._graphs: Any = None  # `RunningGraphs`, where some row has been decoded by them

    def __len__(self) -> int:
        return len(self.rows) + (0 if self._graphs is None else len(self._graphs.rows))

    @property
    def passes(self) -> int:
        """Forward passes so far; rows of very different lengths, and of different policies, take several a step."""
        eager = sum(passes.passes for passes in self._passes.values())
        return eager + (0 if self._graphs is None else self._graphs.passes)

    @torch.no_grad()
    def enter(self, request: Request) -> RunningRow:
        """Take in a request of one row (`request.make_request`) whose parameters fit (`shares_passes`).

        Its canvas may be on the CPU, so that whoever makes it need not wait for the device.
        """
        rows = len(request.row_keys)
        if rows != 1 or not shares_passes(request.params) or request.session is not None:
            raise ValueError(f"a running batch takes one row without a session that shares passes, given {rows} rows")
        reason = why_eager(self.model, request)
        if reason is None:
            return self._entered(request)
        if self.model.device.type == "cuda":
            say_once(f"decoding in the running batch without CUDA graphs: {reason}")
        if request.canvas.tokens.device != self.model.device:
            request = replace(request, canvas=request.layout.to(self.model.device))
        taken = {slot for row in self.rows for slot in row.slots}
        free = (slot for slot in range(2 * len(self.rows) + 2) if slot not in taken)
        slots = tuple(next(free) for _ in range(2 if request.params.cfg_scale > 0 else 1))
        row = Row(request=request, slots=slots, rule=StepRule(self.model, request))
        row.advance()
        if not row.finished:
            self.rows.append(row)
        return row

    def _entered(self, request: Request) -> RunningRow:
        from qwen3llada.sampling.cuda.running_graphs import RunningGraphs

        if self._graphs is None:
            self._graphs = RunningGraphs(self.model)
        row: RunningRow = self._graphs.enter(request)
        return row

    def leave(self, row: RunningRow) -> None:
        """Give a row up, or let a finished one go."""
        if not isinstance(row, Row):
            self._graphs.leave(row)
            return
        if row in self.rows:
            self.rows.remove(row)
        if not self.rows:
            for passes in self._passes.values():
                passes.cache.clear()

    def close(self) -> None:
        """Give up all rows, and free the memory of the graphs."""
        self.rows = []
        if self._graphs is not None:
            self._graphs.close()

    @torch.no_grad()
    def step(self) -> list[RunningRow]:
        """One forward pass for every row. Returns the rows that have got on; those that are `finished` have left.

        What the passes of graphs did is seen in the step after, while the next one is under way.
        """
        seen: list[RunningRow] = [] if self._graphs is None else self._graphs.step()
        return [*seen, *self._step_eagerly()]

    def _step_eagerly(self) -> list[Row]:
        rows, states = list(self.rows), dict[Row, list[Tensor]]()
        for policy in dict.fromkeys(row.request.policy for row in rows):
            states |= self._hidden([row for row in rows if row.request.policy == policy], policy)
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.request.params.model_dump_json(exclude=NOT_OF_A_STEP), []).append(row)
        for group in groups.values():
            run_step(group, [states[row] for row in group])
        for row in rows:
            row.passes += 1
            row.advance()
            if row.finished:
                self.leave(row)
        return rows

    def _hidden(self, rows: Sequence[Row], policy: Policy) -> dict[Row, list[Tensor]]:
        """Final hidden states [W, D] of each row's block; under guidance also those with the prompt masked."""
        passes = self._passes.setdefault(policy, SharedPasses(self.model, policy))
        slots = max(slot for row in rows for slot in row.slots) + 1
        passes.cache.reserve(slots, max(row.tokens.shape[1] for row in rows))
        spans = [row.spans(keeps=passes.keeps, causal=passes.causal) for row in rows]
        found = iter(passes.hidden([span for part in spans for span in part]))
        return {row: [next(found) for _ in part] for row, part in zip(rows, spans, strict=True)}


def why_eager(model: Any, request: Request) -> str | None:
    """Why a row of a running batch is decoded without CUDA graphs, in one line; None if it is decoded by them."""
    if request.params.backend == "eager":
        return "backend=eager"
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}"
    from qwen3llada.sampling.cuda.support import why_not

    return why_not(model, request)


def run_step(rows: Sequence[Row], states: Sequence[Sequence[Tensor]]) -> None:
    """One step of rows that differ in nothing that a step reads, on their hidden states [W, D], in place."""
    parts = [row.units for row in rows if row.units is not None]
    numbers = [row.number for row in rows]
    together = parts[0] if len(parts) == 1 else joined(parts)
    number = numbers[0] if len(set(numbers)) == 1 else torch.tensor(numbers)
    padded = [pad_sequence([of[kind] for of in states], batch_first=True) for kind in range(len(states[0]))]
    rows[0].rule.after_pass(together, number, torch.cat(padded))
    if together is not parts[0]:
        for i, part in enumerate(parts):
            for name in CHANGED_PLACES:
                getattr(part, name).copy_(getattr(together, name)[i : i + 1, : part.width])
            for name in CHANGED:
                getattr(part, name).copy_(getattr(together, name)[i : i + 1])


def joined(parts: Sequence[Units]) -> Units:
    """Units of several rows as one, padded to the widest block. What is padded is not masked, so nothing decodes it."""
    whole = {}
    for name in (f.name for f in fields(Units)):
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], Tensor):
            whole[name] = torch.cat(values) if values[0].dim() == 1 else pad_sequence([v[0] for v in values], True)
    return replace(parts[0], **whole)
