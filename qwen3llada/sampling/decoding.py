"""The loop that decodes masks into tokens.

Shapes: B rows, L columns of the canvas, U units (a unit is one block of one row), W columns of a block.
"""

import logging
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import is_causal
from qwen3llada.sampling.eager import EagerSampler
from qwen3llada.sampling.open_blocks import Units, cut, waves
from qwen3llada.sampling.request import Request

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Result of one forward pass. Later steps overwrite the tensors: clone what must outlast the next step."""

    index: int  # forward passes of unmasking before this one
    canvas: Tensor  # [B, L] tokens so far
    committed: Tensor  # [B, L] bool, positions that this step committed or whose token it replaced
    confidence: Tensor  # [B, L] float32, probability that each decoded token had when it was committed, else 0
    settled: Tensor | None = None  # [B, L] bool, decoded tokens that no later step changes; None: all decoded ones


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

    def prepare(self, units: Units) -> None:
        """Get ready for `units`, which are probably opened next."""

    def open(self, units: Units) -> Units:
        """Start decoding `units`. The steps update the returned units."""

    def step(self, units: Units, number: int) -> None:
        """Run one step of the units last opened, in place."""

    def close(self, units: Units) -> None:
        """The units last opened are finished."""


@torch.no_grad()
def decode(model: Any, request: Request, *, watched: bool = True) -> Generator[Step, None, Generation]:
    """Decode a request. Yields after each forward pass, or nothing if not `watched`, which is faster."""
    canvas, params = request.canvas, request.params
    tokens, confidence = canvas.tokens.clone(), torch.zeros(canvas.tokens.shape, device=canvas.tokens.device)
    settled = torch.zeros_like(canvas.valid) if params.revises else None
    sampler = choose_sampler(model, request, tokens)
    index = 0
    for opened in waves(request, tokens, sampler.prepare):
        units = sampler.open(opened)
        for number in units.step_numbers(params):
            sampler.step(units, number)
            if watched:
                yield _seen(request, units, index, tokens, confidence, settled)
            index += 1
        canvas.in_blocks(tokens)[units.place] = units.tokens
        sampler.close(units)
    answers = cut(request, tokens)
    shown = request.layout.shown(tokens)
    return Generation(tokens=answers, canvas=shown, forward_passes=sampler.passes, backend=sampler.backend)


def _seen(
    request: Request, units: Units, index: int, tokens: Tensor, confidence: Tensor, settled: Tensor | None
) -> Step:
    """The step just made. Enters it into the canvas: `tokens`, `confidence`, `settled`, each [B, L]."""
    in_blocks, shown = request.canvas.in_blocks, request.layout.shown
    committed = torch.zeros_like(request.canvas.valid)
    in_blocks(tokens)[units.place] = units.tokens
    in_blocks(confidence)[units.place] = units.confidence
    in_blocks(committed)[units.place] = units.taken
    if settled is not None:
        in_blocks(settled)[units.place] = units.settled()
    return Step(
        index=index,
        canvas=shown(tokens),
        committed=shown(committed),
        confidence=shown(confidence),
        settled=None if settled is None else shown(settled),
    )


def choose_sampler(model: Any, request: Request, tokens: Tensor) -> Sampler:
    """CUDA graphs if possible, else eager with the reason logged. Raises InputError if graphs were demanded."""
    wanted = request.params.backend
    if wanted == "eager" or (wanted == "auto" and model.device.type != "cuda"):
        return EagerSampler(model, request)
    from qwen3llada.sampling.cuda.sampler import GraphSampler
    from qwen3llada.sampling.cuda.support import why_not

    reason = why_not(model, request)
    if reason is None:
        if request.session is not None and is_causal(request.policy):
            say_once("CUDA graphs keep nothing between calls: a conversation's earlier turns are computed again")
        return GraphSampler(model, request, tokens)
    if wanted == "graph":
        raise InputError(f"backend=graph cannot be used: {reason}")
    say_once(f"sampling without CUDA graphs: {reason}")
    return EagerSampler(model, request)


@cache  # each line once per process
def say_once(line: str) -> None:
    """Log a warning."""
    log.warning(line)
