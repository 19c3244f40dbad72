"""What the sampler runs on a GPU as one CUDA graph: a whole step with its commits, or a pass that fills a prefix.

A program owns the memory that it reads and writes, so it can be recorded once for its shape and replayed for any
content. Shapes: U units of Q tokens, of which W are the block; E head size, S steps (at most W).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from qwen3llada.sampling import noise
from qwen3llada.sampling.commit_kernels import SPLITS, commit_likeliest, likeliest
from qwen3llada.sampling.head import Head
from qwen3llada.sampling.layer_kernels import Ranges
from qwen3llada.sampling.packed import KeyValues, PackedModel, Write
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.remasking import annealed, commit

WARMUP_RUNS = 2  # before recording: kernels are compiled and libraries allocate what they keep
ROWS_OF_LOGITS = 256  # projected at a time: enough to fill a GPU, and all of the vocabulary that is ever held


class Recorded:
    """A function without arguments as a CUDA graph; on a CPU, the function."""

    def __init__(self, function: Callable[[], None], device: torch.device, pool: Any) -> None:
        self._function, self._graph = function, None
        if device.type != "cuda":
            return
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_RUNS):
                function()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            function()

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        else:
            self._function()


def empty_ranges(units: int, queries: int, spare: int, device: torch.device) -> Ranges:
    """Ranges in which a unit sees its own keys and none of the prefix, whose row is `spare`."""
    values = {field.name: torch.zeros(units, dtype=torch.int32, device=device) for field in fields(Ranges)}
    values["own_high"].fill_(queries)
    values["owner"].fill_(spare)
    return Ranges(**values)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a program is recorded for."""

    units: int
    queries: int
    width: int = 0
    guided: bool = False

    @property
    def rows(self) -> int:
        """Units that the model sees: under guidance, each twice."""
        return self.units * (2 if self.guided else 1)


class FillProgram:
    """A pass whose keys and values are stored for others to read."""

    def __init__(
        self, model: PackedModel, shape: Shape, store: KeyValues, *, reads: bool, device: torch.device
    ) -> None:
        tokens = shape.rows * shape.queries
        spare = len(store.keys[0]) - 1
        self.model, self.shape, self.store, self.reads = model, shape, store, reads
        self.tokens = torch.zeros(shape.rows, shape.queries, dtype=torch.int64, device=device)
        self.angles = tuple(torch.zeros(tokens, model.head_size, device=device) for _ in range(2))
        self.ranges = empty_ranges(shape.rows, shape.queries, spare, device)
        self.rows = torch.full((shape.rows,), spare, dtype=torch.int64, device=device)
        self.columns = torch.arange(shape.queries, device=device)

    def run(self) -> None:
        write = Write(to=self.store, rows=self.rows, columns=self.columns)
        prefix = self.store if self.reads else None
        self.model(self.tokens, self.angles, self.ranges, prefix=prefix, write=write, states=False)


class StepProgram:
    """One step: the pass, a proposal for every position of the block, the commits."""

    def __init__(
        self,
        model: PackedModel,
        shape: Shape,
        prefix: KeyValues | None,
        head: Head,
        params: DecodeParams,
        device: torch.device,
    ) -> None:
        self.model, self.shape, self.prefix, self.head, self.params = model, shape, prefix, head, params
        units, width, tokens = shape.units, shape.width, shape.rows * shape.queries

        def zeros(*size: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.canvas, self.given = zeros(units, shape.queries), zeros(units, shape.queries, dtype=torch.bool)
        self.masked, self.taken = zeros(units, width, dtype=torch.bool), zeros(units, width, dtype=torch.bool)
        self.confidence = zeros(units, width, dtype=torch.float32)
        self.counts, self.shares, self.keys = zeros(units, width, dtype=torch.int32), zeros(units), zeros(units)
        self.column, self.step = zeros(dtype=torch.int32), zeros(dtype=torch.int32)
        self.threshold = torch.tensor(params.confidence_threshold, device=device)
        self.angles = tuple(zeros(tokens, model.head_size, dtype=torch.float32) for _ in range(2))
        spare = len(prefix.keys[0]) - 1 if prefix is not None else 0
        self.ranges = empty_ranges(shape.rows, shape.queries, spare, device)
        parts = units * width
        self.parts = (
            zeros(parts, SPLITS, dtype=torch.float32),
            zeros(parts, SPLITS, dtype=torch.int32),
            zeros(parts, SPLITS, dtype=torch.float32),
        )

    @property
    def greedy(self) -> bool:
        """Whether the step is what the fused kernels do: the likeliest tokens, the most confident first."""
        return self.params.temperature == 0 and self.params.remasking == "low_confidence" and not self.shape.guided

    def run(self) -> None:
        seen = self.canvas
        if self.shape.guided:
            seen = torch.cat([seen, seen.masked_fill(self.given, self.head.mask_token_id)])
        states = self.model(seen, self.angles, self.ranges, prefix=self.prefix, rows=self._block_rows())
        assert states is not None
        if self.greedy:
            self._commit_greedy(states)
        else:
            self._commit_any(states)
        self.step.add_(1)

    def _block_rows(self) -> Tensor | None:
        """Indices of the block's positions among all tokens, None where they are all there is."""
        if self.shape.queries == self.shape.width:
            return None
        first = torch.arange(self.shape.rows, device=self.canvas.device)[:, None] * self.shape.queries
        return (first + self._block_columns()).flatten()

    def _block_columns(self) -> Tensor:
        return self.column + torch.arange(self.shape.width, device=self.canvas.device)

    def _commit_greedy(self, states: Tensor) -> None:
        for first in range(0, len(states), ROWS_OF_LOGITS):
            rows = slice(first, first + ROWS_OF_LOGITS)
            likeliest(self.head.project(states[rows]), self.head.mask_token_id, *(part[rows] for part in self.parts))
        commit_likeliest(
            self.parts, self.canvas, self.masked, self.taken, self.confidence,
            self.column, self.counts, self.step, self.threshold, fixed=self.params.unmask == "fixed",
        )  # fmt: skip

    def _commit_any(self, states: Tensor) -> None:
        units, width = self.masked.shape
        count = units * width
        temperature = annealed(self.params.remasking_temperature, self.step, self.shares)
        tokens, score, log_prob = self.head(
            states[:count],
            states[count:] if self.shape.guided else None,
            noise.step_keys(self.keys, self.step, width, "token").flatten(),
            noise.step_keys(self.keys, self.step, width, "score").flatten(),
            temperature[:, None].expand(-1, width).flatten(),
        )
        certainty = log_prob.exp().view(units, width)
        threshold = None if self.params.unmask == "fixed" else self.params.confidence_threshold
        counts = self.counts.gather(1, self.step.clamp(max=width - 1).long().expand(units, 1))[:, 0]
        taken = commit(score.view(units, width), self.masked, counts, certainty, threshold)
        columns = self._block_columns().expand(units, width)
        block = self.canvas.gather(1, columns)
        self.canvas.scatter_(1, columns, torch.where(taken, tokens.view(units, width), block))
        self.confidence.copy_(torch.where(taken, certainty.float(), self.confidence))
        self.masked.logical_and_(~taken)
        self.taken.copy_(taken)
