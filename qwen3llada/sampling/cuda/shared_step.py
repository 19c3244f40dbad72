"""The program of a step of a running batch, which serves any mixture of rows.

Everything that a row computes in a pass is cut into units of W tokens: the block that it decodes, finished blocks whose
final keys and values are stored, and its prompt. In each layer all units store their keys and values before any unit
attends, so a block can see keys of the same pass. Only `inputs` differs between two passes of one shape.

Shapes: U units, R units of the model's input (U, or 2U under guidance: then follow those with all given tokens masked),
W tokens of a unit, T columns of the memory.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from qwen3llada.sampling.cuda.attention_ranges import Range
from qwen3llada.sampling.cuda.logits_kernel import Form, Knob
from qwen3llada.sampling.cuda.packed_model import PackedModel, Write
from qwen3llada.sampling.cuda.running_memory import RunningMemory
from qwen3llada.sampling.cuda.step_programs import ProgramShape, StepProgram, Variant
from qwen3llada.sampling.head import Head


class Input(IntEnum):
    """Rows of the tensor `inputs` [21, R] int64. A unit of zeros does nothing."""

    ADDRESS = 0  # column of the unit's first token in the memory
    POSITION = 1  # position of that token in its row
    RANGES = 2  # and the next six: what the unit sees, see `Range`
    STORE = RANGES + len(Range)  # column where the first key and value is stored
    STORED = STORE + 1  # how many are stored
    DECODED = STORED + 1  # tokens of the block that is decoded; 0: the unit is only stored
    KEY = DECODED + 1  # from here on only the first U columns are read: noise key,
    STEP = KEY + 1  # number of the step,
    SHARE = STEP + 1  # number of the block's steps,
    COUNT = SHARE + 1  # positions to commit under fixed unmasking,
    KNOBS = COUNT + 1  # and the next four: the bits of the float64 parameters, see `Knob`


INPUTS = Input.KNOBS + len(Knob)


class SharedStepProgram(StepProgram):
    """One step of the units that `inputs` describes. Tokens are read from the memory and committed there.

    After a run `canvas` [U, W] has the units' tokens, and `confidence` [U, W] the probabilities of those that were
    committed, else 0.
    """

    def __init__(
        self,
        model: PackedModel,
        shape: ProgramShape,
        memory: RunningMemory,
        head: Head,
        form: Form,
        *,
        device: torch.device,
    ) -> None:
        super().__init__(model, shape, memory.store, head, form, blocks=None, device=device)
        units = shape.units
        self.memory, self.positions = memory, len(model.angles.cos)
        self.inputs = torch.zeros(INPUTS, shape.rows, dtype=torch.int64, device=device)
        of_step = torch.zeros(INPUTS - Input.KEY, units, dtype=torch.int64, device=device)
        self._of_step, self._lanes = of_step, torch.arange(shape.width, device=device)
        self.keys, self.steps, self.shares, counts = of_step[: Input.KNOBS - Input.KEY]
        self.knobs = of_step[Input.KNOBS - Input.KEY :].view(torch.float64)
        self.counts, self.turns = counts[:, None], torch.zeros_like(counts)
        firsts, counts = self.inputs[Input.STORE], self.inputs[Input.STORED]
        self.write = Write(to=memory.store, firsts=firsts, counts=counts, read=True)
        self.target, self.origins = memory.tokens, self.inputs[Input.ADDRESS, :units]

    def record(self, variants: Iterable[Any], pool: Any) -> None:
        """Capture what is missing. Until `inputs` is filled again, a run does nothing."""
        if set(variants) - self._recorded.keys():
            self.inputs.zero_()
            super().record(variants, pool)

    def warm_up(self, variants: Iterable[Any]) -> list[Any]:
        return list(variants)

    def run(self, variant: Variant) -> None:
        """Run the step. At most `variant.chunks` · ROWS_OF_LOGITS positions may still be masked."""
        index = self.inputs[Input.ADDRESS][:, None] + self._lanes  # [R, W]
        seen = self._load(index)
        chosen, rows = self._chosen(variant)
        states = self.model(
            seen,
            self.places.positions.flatten(),
            self.places.ranges,
            prefix=self.memory.store,
            write=self.write,
            rows=rows,
        )
        assert states is not None
        self._decide(states, chosen)
        self.canvas.copy_(self.memory.tokens[index[: self.shape.units]])

    def _load(self, index: Tensor) -> Tensor:
        """The model's input [R, W] from the memory's columns `index` [R, W]. Fills what the kernels read."""
        units, inputs, mask = self.shape.units, self.inputs, self.head.mask_token_id
        seen = self.memory.tokens[index]
        self.masked.copy_((seen[:units] == mask) & (self._lanes < inputs[Input.DECODED, :units, None]))
        if self.form.guided:
            seen[units:].masked_fill_(self.memory.given[index[units:]], mask)
        self.places.ranges.copy_(inputs[Input.RANGES : Input.STORE])
        self.places.positions.copy_((inputs[Input.POSITION][:, None] + self._lanes).clamp_(max=self.positions - 1))
        self._of_step.copy_(inputs[Input.KEY :, :units])
        self.confidence.zero_()
        return seen
