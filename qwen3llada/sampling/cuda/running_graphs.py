"""The rows of a running batch whose steps are CUDA graphs.

A pass serves any mixture of rows of one kind (see `Kind`). The host plans a pass while the one before runs on the
device, and learns the results of a pass when the next one is under way.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import POLICIES, plan
from qwen3llada.sampling.cuda.graphed_row import GraphedRow, Kind
from qwen3llada.sampling.cuda.program_cache import Graphs
from qwen3llada.sampling.cuda.running_memory import RunningMemory
from qwen3llada.sampling.cuda.running_passes import UnderWay, divided, launch, sent
from qwen3llada.sampling.cuda.running_units import Kept
from qwen3llada.sampling.head import make_head
from qwen3llada.sampling.request import Request


class RunningGraphs:
    """Rows that are decoded by graphs. Not safe for use by several threads."""

    def __init__(self, model: Any) -> None:
        self.model, self.passes = model, 0
        self.rows: list[GraphedRow] = []
        self._graphs = Graphs.of(model)
        self._memory: RunningMemory | None = None
        self._under_way: deque[list[UnderWay]] = deque()

    @torch.no_grad()
    def enter(self, request: Request) -> GraphedRow:
        """Take in a request of one row for which `support.why_not` says nothing.

        Raises InputError if the device has no memory for it.
        """
        if not self.rows and Graphs.of(self.model) is not self._graphs:
            self.close()
            self._graphs = Graphs.of(self.model)  # the weights have moved
        request = replace(request, canvas=request.layout)
        (policy,) = plan(request.policy)
        columns = request.layout.tokens.shape[1] + request.layout.block_length  # a unit may read beyond the end
        everything = request.layout.tokens.shape[1] // request.layout.block_length + 1
        window = min(everything, self.model.config.window_blocks) if POLICIES[policy].windowed else everything
        spans = list[int]()
        try:
            for _ in range(2 if request.params.cfg_scale > 0 else 1):
                spans.append(self._take(columns))
        except InputError:
            self._give_back(spans)
            raise
        row = GraphedRow(request=request, spans=tuple(spans), kept_by=Kept.by(request.policy), window=window)
        self._write(row)
        if row.finished:
            self._free(row)
        else:
            self.rows.append(row)
        return row

    def leave(self, row: GraphedRow) -> None:
        """Give a row up, or let a finished one go. Passes under way may still write to its span, before any other."""
        if row in self.rows:
            self.rows.remove(row)
            self._free(row)
        if not self.rows:
            self._under_way.clear()

    def close(self) -> None:
        """Free the memory and the programs that read it."""
        if self._memory is not None:
            self._graphs.forget(self._memory.store)
        self._memory = None
        self._under_way.clear()

    @torch.no_grad()
    def step(self) -> list[GraphedRow]:
        """Launch passes with every row that can go on. Returns the rows that earlier ones took a step on."""
        launched, kinds = list[UnderWay](), dict[Kind, list[GraphedRow]]()
        for row in self.rows:
            if not row.planned:
                kinds.setdefault(row.kind, []).append(row)
        for kind, rows in kinds.items():
            assert self._memory is not None
            head = make_head(self.model, rows[0].request)
            for steps in divided(kind, [row.plan() for row in rows]):
                launched.append(launch(self._graphs, self._memory, head, kind, steps))
        self.passes += len(launched)
        if launched:
            self._under_way.append(launched)
        seen = list[GraphedRow]()
        if len(self._under_way) > 1 or (self._under_way and not launched):
            seen = [row for found in self._under_way.popleft() for row in found.collect()]
        for row in seen:
            if row.finished:
                self.leave(row)
        return seen

    def _take(self, columns: int) -> int:
        """Columns of the memory, which grows if there are not enough."""
        if self._memory is None:
            self._memory = RunningMemory.for_first(self._graphs.packed, columns)
        while (first := self._memory.spans.take(columns)) is None:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)  # before graphs under way are dropped
            self._graphs.forget(self._memory.store)
            self._memory.grow()
        return first

    def _write(self, row: GraphedRow) -> None:
        """Write a row's canvas to the memory."""
        assert self._memory is not None
        tokens, given = row.tokens[0], row.request.layout.given[0]
        at = slice(row.spans[0], row.spans[0] + len(tokens))
        self._memory.tokens[at].copy_(sent(tokens, self._graphs.device), non_blocking=True)
        if len(row.spans) > 1:
            self._memory.given[at].copy_(sent(given, self._graphs.device), non_blocking=True)

    def _free(self, row: GraphedRow) -> None:
        row.gone = True
        self._give_back(row.spans)

    def _give_back(self, spans: Sequence[int]) -> None:
        assert self._memory is not None
        for first in spans:
            self._memory.spans.give_back(first)
