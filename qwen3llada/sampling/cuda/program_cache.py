"""The CUDA graphs of a model: captured once per shape and kept as long as the model."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from qwen3llada.sampling.cuda.attention_ranges import Blocks
from qwen3llada.sampling.cuda.logits_kernel import Form
from qwen3llada.sampling.cuda.packed_model import KeyValues, PackedModel
from qwen3llada.sampling.cuda.running_memory import RunningMemory
from qwen3llada.sampling.cuda.shared_step import SharedStepProgram
from qwen3llada.sampling.cuda.step_programs import FillProgram, ProgramShape, StepProgram, Variant
from qwen3llada.sampling.head import Head

COLUMN_BUCKET = 64  # prompt columns are rounded up to a multiple
KEPT_PROGRAMS = 64
WORTH_A_PASS = 256  # columns of padding that cost more than a pass of their own


def bucket_columns(count: int) -> int:
    return -(-count // COLUMN_BUCKET) * COLUMN_BUCKET


def bucket_units(count: int) -> int:
    """Round up to the next of 1, 2, 3, 4, 6, 8, 12, 16, 24 …: at most half more than `count`."""
    power = 1 << (count - 1).bit_length()
    return power // 4 * 3 if power >= 4 and count <= power // 4 * 3 else power


def by_length(lengths: Tensor) -> list[Tensor]:
    """Groups of rows whose prompts are computed together, so that short ones do not pay for the longest: [U] each.

    A group begins where prompts are less than half as long as its longest, and shorter by a tile of tokens.
    """
    groups: list[list[int]] = []
    longest = 0
    for row in lengths.argsort(descending=True, stable=True).tolist():
        length = int(lengths[row])
        if not groups or (2 * length < longest and longest - length >= WORTH_A_PASS):
            groups.append([])
            longest = length
        groups[-1].append(row)
    return [torch.tensor(sorted(group)) for group in groups if int(lengths[group[0]])]


class Graphs:
    """The programs of one model, and the prefixes that they read."""

    def __init__(self, model: Any) -> None:
        self.packed, self.device = PackedModel(model), model.device
        self._programs: OrderedDict[Hashable, Any] = OrderedDict()
        self._prefixes: weakref.WeakValueDictionary[tuple[int, int], KeyValues] = weakref.WeakValueDictionary()
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self.user: weakref.ref[Any] | None = None  # the sampler whose content is in the programs' memory

    @classmethod
    def of(cls, model: Any) -> "Graphs":
        """The graphs of a model. Made anew if its weights have moved."""
        graphs = _of_models.get(model)
        if graphs is None or graphs.packed.stale:
            graphs = _of_models[model] = cls(model)
        return graphs

    def prefix(self, rows: int, columns: int) -> KeyValues:
        """Memory for the keys and values of at least `rows` rows. Its content is undefined."""
        shape = bucket_units(rows), columns
        kept = self._prefixes.get(shape)
        if kept is None:
            kept = self._prefixes[shape] = KeyValues.empty(self.packed, *shape)
        return kept

    def fill(self, shape: ProgramShape, store: KeyValues, *, reads: bool, blocks: Blocks | None = None) -> FillProgram:
        """The program that writes keys and values to `store` (see `FillProgram`)."""
        return self._program(
            ("fill", shape, id(store), reads, blocks),
            lambda: FillProgram(self.packed, shape, store, reads=reads, blocks=blocks, device=self.device),
            {FillProgram.VARIANT},
        )

    def step(
        self,
        shape: ProgramShape,
        prefix: KeyValues | None,
        head: Head,
        form: Form,
        variants: set[Variant],
        *,
        blocks: Blocks | None = None,
    ) -> StepProgram:
        """The program of a step (see `StepProgram`), captured for each of `variants`."""
        return self._program(
            ("step", shape, id(prefix), head.mask_token_id, form, blocks),
            lambda: StepProgram(self.packed, shape, prefix, head, form, blocks=blocks, device=self.device),
            variants,
        )

    def shared_step(
        self, shape: ProgramShape, memory: RunningMemory, head: Head, form: Form, variant: Variant | None
    ) -> SharedStepProgram:
        """The program of a step of a running batch, captured for `variant`, if one is given."""
        return self._program(
            ("shared", shape, id(memory), head.mask_token_id, form),
            lambda: SharedStepProgram(self.packed, shape, memory, head, form, device=self.device),
            set() if variant is None else {variant},
        )

    def forget(self, store: KeyValues) -> None:
        """Drop the programs that read `store`."""
        for key in [key for key, program in self._programs.items() if program.store is store]:
            del self._programs[key]

    def _program(self, key: Hashable, make: Callable[[], Any], variants: set[Any]) -> Any:
        """The program of a cache key. A missing program or variant is captured, which overwrites its memory."""
        program = self._programs.get(key) or make()
        program.record(variants, self._pool)
        self._programs[key] = program
        self._programs.move_to_end(key)
        if len(self._programs) > KEPT_PROGRAMS:
            self._programs.popitem(last=False)
        return program


_of_models: weakref.WeakKeyDictionary[Any, Graphs] = weakref.WeakKeyDictionary()
