"""Programs that the sampler runs as CUDA graphs: a whole step with its commits, or a pass that fills a prefix.

A program owns the memory that it reads and writes. It is captured once for its shape and replayed for any content.
Shapes: U units of Q tokens, of which W are the block; S steps (at most W); N = U·W positions of the blocks.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.cuda.attention_kernel import Blocks, Range
from qwen3llada.sampling.cuda.captured_function import CapturedFunction
from qwen3llada.sampling.cuda.commit_kernels import VOCABULARY_SPLITS, commit_likeliest, likeliest
from qwen3llada.sampling.cuda.packed_model import KeyValues, PackedModel, Write
from qwen3llada.sampling.head import Head
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.remasking import annealed, commit

WARMUP_RUNS = 2  # before a capture: compiles kernels and lets libraries allocate workspaces
ROWS_OF_LOGITS = 256  # projected at a time: enough to fill a GPU; no more logits are ever held
MOST_VARIANTS = 8  # of a step program, by the number of positions that are still masked


def chunks_for(masked: int, everything: int) -> int:
    """Chunks of logits for `masked` of `everything` positions, rounded up to keep the number of variants small."""
    step = -(-everything // (ROWS_OF_LOGITS * MOST_VARIANTS))
    return -(-masked // (ROWS_OF_LOGITS * step)) * step


@dataclass(frozen=True, kw_only=True)
class ProgramShape:
    """Shape for which a program is captured."""

    units: int
    queries: int
    width: int = 0
    guided: bool = False

    @property
    def rows(self) -> int:
        """Rows of the model's input: units, twice as many under guidance."""
        return self.units * (2 if self.guided else 1)


class Program:
    """Input memory of a pass: the units' positions and what they see."""

    def __init__(self, model: PackedModel, shape: ProgramShape, store: KeyValues | None, device: torch.device) -> None:
        self.model, self.shape, self.store = model, shape, store
        self.spare = len(store.keys[0]) - 1 if store is not None else 0  # the prefix's row for padding units
        self.positions = torch.zeros(shape.rows, shape.queries, dtype=torch.int32, device=device)
        self.ranges = torch.zeros(len(Range), shape.rows, dtype=torch.int32, device=device)
        self.ranges[Range.OWN_HIGH] = shape.queries  # padding units see themselves, so that softmax stays finite
        self.ranges[Range.OWNER] = self.spare
        self._recorded: dict[int, CapturedFunction] = {}

    def run(self, variant: int) -> None:
        raise NotImplementedError

    def record(self, variants: set[int], device: torch.device, pool: Any) -> None:
        """Capture those of `variants` that are missing. A new capture overwrites the program's memory."""
        for variant in sorted(variants - self._recorded.keys()):
            warmup = 0 if self._recorded else WARMUP_RUNS  # all variants use the same kernels, so one warm-up is enough
            self._recorded[variant] = CapturedFunction(
                functools.partial(self.run, variant), device, pool, warmup=warmup
            )

    def replay(self, variant: int = 0) -> None:
        self._recorded[variant]()

    def place(self, first: int, positions: Tensor, ranges: Tensor) -> None:
        """Copy positions [R, Q] and ranges [7, R], both int32 on the CPU, to the program's units from `first` on."""
        at = slice(first, first + len(positions))
        self.positions[at].copy_(positions, non_blocking=True)
        self.ranges[:, at].copy_(ranges, non_blocking=True)


class FillProgram(Program):
    """A pass that stores keys and values for other passes to read.

    reads: whether the units see keys and values stored earlier. blocks: for units of whole blocks, see `Blocks`.
    """

    def __init__(
        self,
        model: PackedModel,
        shape: ProgramShape,
        store: KeyValues,
        *,
        reads: bool,
        blocks: Blocks | None,
        device: torch.device,
    ) -> None:
        super().__init__(model, shape, store, device)
        self.tokens = torch.zeros(shape.rows, shape.queries, dtype=torch.int64, device=device)
        self.rows = torch.full((shape.rows,), self.spare, dtype=torch.int64, device=device)
        self.columns = torch.arange(shape.queries, device=device)
        self.write = Write(to=store, rows=self.rows, columns=self.columns)
        self.prefix, self.blocks = store if reads else None, blocks

    def run(self, variant: int) -> None:
        positions = self.positions.flatten()
        self.model(
            self.tokens,
            positions,
            self.ranges,
            prefix=self.prefix,
            write=self.write,
            blocks=self.blocks,
            states=False,
        )


class StepProgram(Program):
    """One step: the forward pass, a proposal for every masked position of the block, and the commits."""

    def __init__(
        self,
        model: PackedModel,
        shape: ProgramShape,
        prefix: KeyValues | None,
        head: Head,
        params: DecodeParams,
        device: torch.device,
    ) -> None:
        super().__init__(model, shape, prefix, device)
        self.head, self.params, units, width = head, params, shape.units, shape.width

        def zeros(*size: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.canvas, self.given = zeros(units, shape.queries), zeros(units, shape.queries, dtype=torch.bool)
        self.masked, self.taken = zeros(units, width, dtype=torch.bool), zeros(units, width, dtype=torch.bool)
        self.confidence = zeros(units, width, dtype=torch.float32)
        self.counts, self.shares, self.keys = zeros(units, width, dtype=torch.int32), zeros(units), zeros(units)
        self.column, self.step = zeros(dtype=torch.int32), zeros(dtype=torch.int32)
        self.threshold = torch.tensor(params.confidence_threshold, device=device)
        size = units * width, VOCABULARY_SPLITS
        self.parts = (
            zeros(*size, dtype=torch.float32),
            zeros(*size, dtype=torch.int32),
            zeros(*size, dtype=torch.float32),
        )

    @property
    def greedy(self) -> bool:
        """Whether the fused kernels cover this step: likeliest tokens, most confident first, no guidance."""
        return self.params.temperature == 0 and self.params.remasking == "low_confidence" and not self.shape.guided

    def run(self, variant: int) -> None:
        """Run the step. At most `variant` · ROWS_OF_LOGITS positions may still be masked."""
        seen = self.canvas
        if self.shape.guided:
            seen = torch.cat([seen, seen.masked_fill(self.given, self.head.mask_token_id)])
        chosen = self._chosen(variant)
        states = self.model(seen, self.positions.flatten(), self.ranges, prefix=self.store, rows=self._rows(chosen))
        assert states is not None
        if self.greedy:
            self._commit_greedy(states, chosen)
        else:
            self._commit_any(states, chosen)
        self.step.add_(1)

    def _chosen(self, chunks: int) -> Tensor:
        """Positions to project to the vocabulary: all N, or the masked ones padded to whole chunks."""
        everything, room = self.masked.numel(), chunks * ROWS_OF_LOGITS
        positions = torch.arange(everything, device=self.masked.device)
        if room >= everything:
            return positions
        masked = self.masked.flatten()
        # Unmasked positions go to the extra last slot, which is cut off. Unused slots repeat position 0.
        target = torch.where(masked, masked.cumsum(0) - 1, everything)
        return torch.zeros(everything + 1, dtype=torch.int64, device=masked.device).scatter_(0, target, positions)[
            :room
        ]

    def _rows(self, chosen: Tensor) -> Tensor | None:
        """Indices of the `chosen` positions among all tokens of the model's input; None if they are all of them."""
        units, queries, width = self.shape.units, self.shape.queries, self.shape.width
        if queries == width and len(chosen) == units * width:
            return None
        rows = chosen // width * queries + self.column + chosen % width
        return torch.cat([rows, rows + units * queries]) if self.shape.guided else rows

    def _commit_greedy(self, states: Tensor, chosen: Tensor) -> None:
        for first in range(0, len(states), ROWS_OF_LOGITS):
            rows = slice(first, first + ROWS_OF_LOGITS)
            likeliest(self.head.project(states[rows]), chosen[rows], self.head.mask_token_id, self.parts)
        commit_likeliest(
            self.parts, self.canvas, self.masked, self.taken, self.confidence,
            self.column, self.counts, self.step, self.threshold, fixed=self.params.unmask == "fixed",
        )  # fmt: skip

    def _commit_any(self, states: Tensor, chosen: Tensor) -> None:
        (units, width), count = self.masked.shape, len(chosen)
        temperature = annealed(self.params.remasking_temperature, self.step, self.shares)
        proposal = self.head(
            states[:count],
            states[count:] if self.shape.guided else None,
            noise.step_keys(self.keys, self.step, width, "token").flatten()[chosen],
            noise.step_keys(self.keys, self.step, width, "score").flatten()[chosen],
            temperature[chosen // width],
        )
        tokens, score, log_prob = (
            value.new_zeros(units * width).index_copy(0, chosen, value).view(units, width) for value in proposal
        )
        certainty = log_prob.exp()
        threshold = None if self.params.unmask == "fixed" else self.params.confidence_threshold
        counts = self.counts.gather(1, self.step.clamp(max=width - 1).long().expand(units, 1))[:, 0]
        taken = commit(score, self.masked, counts, certainty, threshold)
        columns = (self.column + torch.arange(width, device=chosen.device)).expand(units, width)
        block = self.canvas.gather(1, columns)
        self.canvas.scatter_(1, columns, torch.where(taken, tokens, block))
        self.confidence.copy_(torch.where(taken, certainty.float(), self.confidence))
        self.masked.logical_and_(~taken)
        self.taken.copy_(taken)
