"""Programs that the sampler runs as CUDA graphs: a whole step with its commits, or a pass that fills a prefix.

A program owns the memory that it reads and writes. It is captured once for its shape and replayed for any content.
Shapes: U units of Q tokens, of which W are the block; R rows of the model's input (units, twice under guidance); S
steps (at most W); N = U·W positions of the blocks.
"""

import functools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen3llada.sampling.cuda.attention_ranges import Blocks
from qwen3llada.sampling.cuda.captured_function import CapturedFunction
from qwen3llada.sampling.cuda.commit_kernels import choose_masked, commit_proposals
from qwen3llada.sampling.cuda.logits_kernel import Form, Knob, Parts, read_logits
from qwen3llada.sampling.cuda.packed_model import KeyValues, PackedModel
from qwen3llada.sampling.cuda.pass_inputs import Places, Stored
from qwen3llada.sampling.cuda.proposal_kernel import Proposals, propose
from qwen3llada.sampling.head import Head
from qwen3llada.sampling.remasking import SCORES

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
    before: int = 0  # tokens of the finished block that may join a step's pass

    @property
    def rows(self) -> int:
        """Rows of the model's input: units, twice as many under guidance."""
        return self.units * (2 if self.guided else 1)


class Variant(NamedTuple):
    """A form of a step: chunks of logits, and whether the block that was finished before joins the pass."""

    chunks: int
    joined: bool = False


class Program:
    """What is captured, in one or several variants."""

    def __init__(self, model: PackedModel, shape: ProgramShape, store: KeyValues | None, device: torch.device) -> None:
        self.model, self.shape, self.store, self.device = model, shape, store, device
        self.spare = len(store.keys[0]) - 1 if store is not None else 0  # the prefix's row for padding units
        self.places = Places(shape.rows, shape.queries, self.spare, device)
        self._recorded: dict[Hashable, CapturedFunction] = {}

    def run(self, variant: Any) -> None:
        raise NotImplementedError

    def warm_up(self, variants: Iterable[Any]) -> list[Any]:
        """Those of the new variants that run kernels which no recorded one runs: they run once before the capture."""
        return [] if self._recorded else list(variants)[:1]

    def record(self, variants: Iterable[Any], pool: Any) -> None:
        """Capture those of `variants` that are missing. A new capture overwrites the program's memory."""
        missing = sorted(set(variants) - self._recorded.keys())
        warm_up = self.warm_up(missing)
        for variant in missing:
            function = functools.partial(self.run, variant)
            self._recorded[variant] = CapturedFunction(function, self.device, pool, warmup=int(variant in warm_up))

    def replay(self, variant: Hashable) -> None:
        self._recorded[variant]()


class FillProgram(Program):
    """A pass that stores keys and values for other passes to read.

    reads: whether the units see keys and values stored earlier. blocks: for units of whole blocks, see `Blocks`.
    """

    VARIANT = 0

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
        self.stored = Stored(shape.rows, shape.queries, store, device)
        self.prefix, self.blocks = store if reads else None, blocks

    def run(self, variant: Any) -> None:
        self.model(
            self.stored.tokens,
            self.places.positions.flatten(),
            self.places.ranges,
            prefix=self.prefix,
            write=self.stored.write,
            blocks=self.blocks,
            states=False,
        )


class StepProgram(Program):
    """One step: the forward pass, a proposal for every masked position of the block, and the commits.

    Where the shape has tokens `before`, a variant computes the keys and values of the finished block in the same pass.
    blocks: of that pass, see `Blocks`.
    """

    def __init__(
        self,
        model: PackedModel,
        shape: ProgramShape,
        prefix: KeyValues | None,
        head: Head,
        form: Form,
        *,
        blocks: Blocks | None,
        device: torch.device,
    ) -> None:
        super().__init__(model, shape, prefix, device)
        self.head, self.form, self.blocks, units, width = head, form, blocks, shape.units, shape.width

        def zeros(*size: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.canvas, self.given = zeros(units, shape.queries), zeros(units, shape.queries, dtype=torch.bool)
        self.masked, self.taken = zeros(units, width, dtype=torch.bool), zeros(units, width, dtype=torch.bool)
        self.confidence = zeros(units, width, dtype=torch.float32)
        self.counts, self.shares, self.keys = zeros(units, width, dtype=torch.int32), zeros(units), zeros(units)
        self.column, self.origins = zeros(dtype=torch.int32), zeros(units)
        self.steps = zeros(units, dtype=torch.int32)
        self.target, self.turns = self.canvas, self.steps  # where tokens are committed, and entries of `counts`
        self.knobs = zeros(len(Knob), units, dtype=torch.float64)
        self.parts = Parts.empty(units * width, head.vocab_size, device)
        self.proposals = Proposals.empty(units * width, device)
        self._everything = torch.arange(units * width, device=device)
        self.joined: tuple[Places, Stored] | None = None
        if shape.before and prefix is not None:
            places = Places(shape.rows, shape.before + shape.queries, self.spare, device)
            self.joined = places, Stored(shape.rows, shape.before, prefix, device)

    def warm_up(self, variants: Iterable[Variant]) -> list[Variant]:
        known = {variant.joined for variant in self._recorded if isinstance(variant, Variant)}
        new = {variant.joined: variant for variant in variants if variant.joined not in known}
        if self.joined is not None and True in new:
            self.joined[1].clear()  # so that the warm-up stores nothing that is read
        return list(new.values())

    def run(self, variant: Variant) -> None:
        """Run the step. At most `variant.chunks` · ROWS_OF_LOGITS positions may still be masked."""
        chosen, rows = self._chosen(variant)
        self._decide(self._states(variant, rows), chosen)
        self.steps.add_(1)

    def _decide(self, states: Tensor, chosen: Tensor) -> None:
        """Propose tokens for the positions `chosen` [n] from their final hidden states, and commit some.

        states: [n, D]; under guidance [2n, D], then those with masked prompts.
        """
        count = len(chosen)
        for first in range(0, count, ROWS_OF_LOGITS):
            part = slice(first, min(first + ROWS_OF_LOGITS, count))
            logits, without = self.head.project(states[part]), None
            if self.form.guided:
                without = self.head.project(states[part.start + count : part.stop + count])
            read_logits(
                logits, without, chosen[part], self.masked, self.keys, self.steps, self.knobs, self.parts,
                form=self.form, mask_token=self.head.mask_token_id, width=self.shape.width,
            )  # fmt: skip
        propose(
            self.parts, self.masked, self.keys, self.shares, self.steps, self.knobs, self.proposals,
            form=self.form, logarithmic=SCORES[self.form.remasking].logarithmic,
        )  # fmt: skip
        commit_proposals(
            self.proposals, self.target, self.masked, self.taken, self.confidence,
            self.origins, self.counts, self.turns, self.knobs, unmask=self.form.unmask,
        )  # fmt: skip

    def _states(self, variant: Variant, rows: Tensor | None) -> Tensor:
        """Final hidden states of the rows `rows` of the model's input, or of all."""
        seen, places, write, blocks = self.canvas, self.places, None, None
        if self.form.guided:
            seen = torch.cat([seen, seen.masked_fill(self.given, self.head.mask_token_id)])
        if variant.joined:
            assert self.joined is not None
            places, stored = self.joined
            seen, write, blocks = torch.cat([stored.tokens, seen], 1), stored.write, self.blocks
        states = self.model(
            seen,
            places.positions.flatten(),
            places.ranges,
            prefix=self.store,
            write=write,
            blocks=blocks,
            rows=rows,
        )
        assert states is not None
        return states

    def _chosen(self, variant: Variant) -> tuple[Tensor, Tensor | None]:
        """Positions to project, and their rows in the model's input: all N, or the masked ones in whole chunks."""
        everything, room = self.masked.numel(), variant.chunks * ROWS_OF_LOGITS
        if room >= everything and self.shape.queries == self.shape.width and not variant.joined:
            return self._everything, None
        before = self.shape.before if variant.joined else 0
        return choose_masked(
            self.masked,
            self.column,
            min(room, everything),
            queries=before + self.shape.queries,
            offset=before,
            guided=self.form.guided,
        )
