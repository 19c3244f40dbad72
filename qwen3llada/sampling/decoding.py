"""The loop that decodes masks into tokens.

Shapes: B rows, L columns of the canvas, U units (a unit is one block of one row), W columns of a block.
"""

import logging
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from qwen3llada.errors import InputError
from qwen3llada.sampling.eager import EagerSampler
from qwen3llada.sampling.open_blocks import Units, cut, waves
from qwen3llada.sampling.request import Request

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Result of one forward pass. Later steps overwrite the tensors: clone what must outlast the next step."""

    index: int  # forward passes of unmasking before this one
    canvas: Tensor  # [B, L] tokens so far
    committed: Tensor  # [B, L] bool, positions that this step committed
    confidence: Tensor  # [B, L] float32, probability that each decoded token had when it was committed, else 0


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Answers, and how they were made."""

    tokens: list[Tensor]  # the answer of each row, up to and including its EOS
    canvas: Tensor  # left-padded prompts and answers; EOS after an answer's end
    forward_passes: int  # of the whole batch
    backend: str  # "graph" if the steps ran as CUDA graphs, else "eager"


class Sampler(Protocol):
    """Runs the steps of a request."""

    backend: str

    @property
    def passes(self) -> int:
        """Forward passes made so far."""

    def open(self, units: Units) -> Units:
        """Start decoding `units`. The steps update the returned units."""

    def step(self, units: Units, number: int) -> None:
        """Run one step of the units last opened, in place."""

    def close(self, units: Units) -> None:
        """The units last opened are finished."""


@torch.no_grad()
def decode(model: Any, request: Request, *, watched: bool = True) -> Generator[Step, None, Generation]:
    """Decode a request. Yields after each forward pass, or nothing if not `watched`, which is faster."""
    canvas, shown, fixed = request.canvas, request.layout.shown, request.params.unmask == "fixed"
    tokens, confidence = canvas.tokens.clone(), torch.zeros(canvas.tokens.shape, device=canvas.tokens.device)
    sampler = choose_sampler(model, request, tokens)
    index = 0
    for opened in waves(request, tokens):
        units = sampler.open(opened)
        for number in units.step_numbers(fixed):
            sampler.step(units, number)
            if watched:
                committed = torch.zeros_like(canvas.valid)
                canvas.in_blocks(tokens)[units.place] = units.tokens
                canvas.in_blocks(confidence)[units.place] = units.confidence
                canvas.in_blocks(committed)[units.place] = units.taken
                yield Step(index=index, canvas=shown(tokens), committed=shown(committed), confidence=shown(confidence))
            index += 1
        canvas.in_blocks(tokens)[units.place] = units.tokens
        sampler.close(units)
    answers = cut(request, tokens)
    return Generation(tokens=answers, canvas=shown(tokens), forward_passes=sampler.passes, backend=sampler.backend)


def choose_sampler(model: Any, request: Request, tokens: Tensor) -> Sampler:
    """CUDA graphs if possible, else eager with the reason logged. Raises InputError if graphs were demanded."""
    wanted = request.params.backend
    if wanted == "eager" or (wanted == "auto" and model.device.type != "cuda"):
        return EagerSampler(model, request)
    from qwen3llada.sampling.cuda.sampler import GraphSampler, why_not

    reason = why_not(model, request)
    if reason is None:
        return GraphSampler(model, request, tokens)
    if wanted == "graph":
        raise InputError(f"backend=graph cannot be used: {reason}")
    log.warning("sampling without CUDA graphs: %s", reason)
    return EagerSampler(model, request)
