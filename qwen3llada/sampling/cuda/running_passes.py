"""Passes of a running batch: planned steps of rows become the inputs of a program, and its results theirs.

Shapes: U units of W tokens, R units of the model's input.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwen3llada.sampling.cuda.attention_ranges import Range
from qwen3llada.sampling.cuda.graphed_row import GraphedRow, Kind, Planned
from qwen3llada.sampling.cuda.program_cache import Graphs
from qwen3llada.sampling.cuda.running_memory import RunningMemory
from qwen3llada.sampling.cuda.running_units import Unit
from qwen3llada.sampling.cuda.shared_step import INPUTS, Input, SharedStepProgram
from qwen3llada.sampling.cuda.step_programs import ProgramShape, Variant, chunks_for
from qwen3llada.sampling.head import Head

PASS_TOKENS = 2**15  # of a pass, if it has several rows: bounds memory where many long prompts come at once
GRAPHED_TOKENS = 2**13  # of a pass: a larger one keeps the device busy while its kernels are launched one by one
MOVED = [Input.RANGES + Range.LOW, Input.RANGES + Range.HIGH, Input.STORE]  # inputs that are columns of keys and values


@dataclass(frozen=True)
class UnderWay:
    """A pass under way, and where its results arrive."""

    planned: Sequence[Planned]
    units: Sequence[int]  # that decode them
    tokens: Tensor  # [U, W] int64
    confidence: Tensor  # [U, W] float32
    arrived: Any  # event; None: they are there

    def collect(self) -> list[GraphedRow]:
        """Wait for the pass. Returns the rows that it took a step on."""
        if self.arrived is not None:
            self.arrived.synchronize()
        tokens, sure = self.tokens.numpy(), self.confidence.numpy()
        found = zip(self.planned, self.units, strict=True)
        return [step.row for step, unit in found if step.row.see(step, tokens[unit], sure[unit])]


def bucket(count: int) -> int:
    """Units of a program for so many: at most a quarter more, and less where there are many, which cost the most."""
    power = 1 << (count - 1).bit_length()
    part = power // (16 if power > 128 else 8)
    return power if count <= 8 else -(-count // part) * part


def divided(kind: Kind, steps: Sequence[Planned]) -> Iterator[list[Planned]]:
    """The steps of one pass after the other."""
    most = PASS_TOKENS // (kind.block_length * (2 if kind.form.guided else 1))
    together, count = list[Planned](), 0
    for step in steps:
        if together and count + len(step.units) > most:
            yield together
            together, count = [], 0
        together.append(step)
        count += len(step.units)
    yield together


def input_of(unit: Unit, first: int, step: Sequence[int]) -> tuple[int, ...]:
    """The `Input` of a unit of a row whose columns begin at `first` in the memory."""
    ranges = (0, unit.own, 0, first + unit.low, first + unit.high, 0, 0)
    at = first + unit.column
    return at, unit.column, *ranges, at, unit.stored, unit.decoded, *(step if unit.decoded else (0,) * len(step))


def inputs_of(steps: Sequence[Planned], units: int, *, guided: bool) -> Tensor:
    """`SharedStepProgram.inputs` [21, R] of a program of so many units."""
    rows = [input_of(unit, step.row.spans[0], step.step) for step in steps for unit in step.units]
    inputs = np.zeros((INPUTS, units * (2 if guided else 1)), dtype=np.int64)
    inputs[:, : len(rows)] = np.array(rows, dtype=np.int64).T
    if guided:  # the same with keys and values of the masked prompt
        other = slice(units, units + len(rows))
        inputs[: Input.KEY, other] = inputs[: Input.KEY, : len(rows)]
        inputs[MOVED, other] += [step.row.spans[1] - step.row.spans[0] for step in steps for _ in step.units]
    return torch.from_numpy(inputs)


def launch(graphs: Graphs, memory: RunningMemory, head: Head, kind: Kind, steps: Sequence[Planned]) -> UnderWay:
    """Launch one pass of these steps."""
    decoded = [i for i, unit in enumerate(unit for step in steps for unit in step.units) if unit.decoded]
    units = bucket(sum(len(step.units) for step in steps))
    guided = kind.form.guided
    shape = ProgramShape(units=units, queries=kind.block_length, width=kind.block_length, guided=guided)
    variant = Variant(chunks_for(sum(step.masked for step in steps), len(steps) * kind.block_length))
    graphed = shape.rows * shape.queries <= GRAPHED_TOKENS
    form = kind.form._replace(draws=any(step.row.draws for step in steps))
    program = graphs.shared_step(shape, memory, head, form, variant if graphed else None)
    inputs = inputs_of(steps, units, guided=guided)
    program.inputs.copy_(sent(inputs, graphs.device), non_blocking=True)
    if graphed:
        program.replay(variant)
    else:
        program.run(variant)
    return UnderWay(steps, decoded, *results(program, graphs.device))


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on the CPU in memory from which a copy to the device does not wait."""
    return x.pin_memory() if device.type == "cuda" else x


def results(program: SharedStepProgram, device: torch.device) -> tuple[Tensor, Tensor, Any]:
    """Copies of what the program has computed, and the event after which they are there."""
    if device.type != "cuda":
        return program.canvas.clone(), program.confidence.clone(), None
    copies = []
    for source in (program.canvas, program.confidence):
        copies.append(torch.empty(source.shape, dtype=source.dtype, pin_memory=True))
        copies[-1].copy_(source, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(device))
    return copies[0], copies[1], arrived
