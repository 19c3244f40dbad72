"""The loop that turns masks into tokens.

Shapes: B rows, L columns of the canvas, U units (a unit is one block of one row), W columns of a block.
"""

import logging
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from qwen3llada.errors import InputError
from qwen3llada.sampling import noise
from qwen3llada.sampling.canvas import Canvas
from qwen3llada.sampling.contexts import Context, open_context
from qwen3llada.sampling.head import Head
from qwen3llada.sampling.remasking import annealed, commit
from qwen3llada.sampling.request import Request
from qwen3llada.sampling.units import Units, cut, waves

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one forward pass did. The tensors are live: clone what is to outlast the next step."""

    index: int  # forward passes of unmasking before this one
    canvas: Tensor  # [B, L] tokens so far
    committed: Tensor  # [B, L] bool, positions that this step committed
    confidence: Tensor  # [B, L] float32, probability that each decoded token had when it was committed, else 0


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Answers, and what they took."""

    tokens: list[Tensor]  # the answer of each row, up to and including its EOS
    canvas: Tensor  # [B, P+G] prompts, padded on the left to the longest, and answers; EOS after an answer's end
    forward_passes: int  # of the model, over the whole batch
    backend: str  # graph where the steps ran as CUDA graphs, else eager


class Sampler(Protocol):
    """How the steps are run."""

    backend: str

    @property
    def passes(self) -> int:
        """Forward passes made so far."""

    def open(self, units: Units) -> Units:
        """Start on some units; what is returned in their place changes with the steps."""

    def step(self, units: Units, number: int) -> None:
        """Run one step of the units last opened, in place."""

    def close(self, units: Units) -> None:
        """The units last opened are finished."""


@torch.no_grad()
def decode(model: Any, request: Request, *, watched: bool = True) -> Generator[Step, None, Generation]:
    """Decode a request, yielding after each forward pass, or nothing if not `watched`, which is faster."""
    canvas, fixed, whole = request.canvas, request.params.unmask == "fixed", slice(0, request.canvas.width)
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
                yield Step(
                    index=index, canvas=tokens[:, whole], committed=committed[:, whole], confidence=confidence[:, whole]
                )
            index += 1
        canvas.in_blocks(tokens)[units.place] = units.tokens
        sampler.close(units)
    answers = cut(request, tokens)
    return Generation(tokens=answers, canvas=tokens[:, whole], forward_passes=sampler.passes, backend=sampler.backend)


def choose_sampler(model: Any, request: Request, tokens: Tensor) -> Sampler:
    """CUDA graphs where they can be used, else eager; why not is logged, and an error where graphs were asked for."""
    wanted = request.params.backend
    if wanted == "eager" or (wanted == "auto" and model.device.type != "cuda"):
        return EagerSampler(model, request)
    from qwen3llada.sampling.graph_sampler import GraphSampler, why_not

    reason = why_not(model, request)
    if reason is None:
        return GraphSampler(model, request, tokens)
    if wanted == "graph":
        raise InputError(f"backend=graph cannot be used: {reason}")
    log.warning("sampling without CUDA graphs: %s", reason)
    return EagerSampler(model, request)


def make_head(model: Any, request: Request) -> Head:
    return Head(
        project=model.get_output_embeddings(),
        vocab_size=model.config.vocab_size,
        mask_token_id=request.mask_token_id,
        temperature=request.params.temperature,
        cfg_scale=request.params.cfg_scale,
        remasking=request.params.remasking,
    )


class EagerSampler:
    """One operation after the other, on any device. Only positions that are still masked meet the vocabulary."""

    backend = "eager"

    def __init__(self, model: Any, request: Request) -> None:
        self.request, self.guided = request, request.params.cfg_scale > 0
        self.head = make_head(model, request)
        canvas = guidance_canvas(request.canvas, request.mask_token_id) if self.guided else request.canvas
        self.context: Context = open_context(model, canvas, request.policy, request.params.cache)

    @property
    def passes(self) -> int:
        return self.context.passes

    def open(self, units: Units) -> Units:
        rows, blocks, _ = units.place
        if self.guided:
            rows, blocks = torch.cat([rows, rows + len(self.request.canvas.tokens)]), torch.cat([blocks, blocks])
        self.context.open(rows, blocks, units.width)
        return units

    def close(self, units: Units) -> None:
        self.context.close(self._seen(units))

    @torch.no_grad()
    def step(self, units: Units, number: int) -> None:
        params = self.request.params
        states = self.context.hidden(self._seen(units))
        where = units.masked.nonzero(as_tuple=True)
        keys, shares = units.keys.to(states.device), units.shares.to(states.device)
        tokens, score, log_prob = self.head(
            states[: len(units.rows)][where],
            states[len(units.rows) :][where] if self.guided else None,
            noise.step_keys(keys, number, units.width, "token")[where],
            noise.step_keys(keys, number, units.width, "score")[where],
            annealed(params.remasking_temperature, number, shares)[where[0]],
        )
        proposed = units.tokens.index_put(where, tokens)
        scores = torch.zeros(units.masked.shape, dtype=torch.float64, device=score.device).index_put(where, score)
        certainty = torch.zeros_like(scores).index_put(where, log_prob.exp())
        counts = units.counts[:, number].to(states.device) if number < units.counts.shape[1] else shares
        threshold = params.confidence_threshold if params.unmask == "threshold" else None
        apply_step(units, proposed, certainty, commit(scores, units.masked, counts, certainty, threshold))

    def _seen(self, units: Units) -> Tensor:
        """The tokens that the model sees: under guidance also, below them, those with everything given masked."""
        if not self.guided:
            return units.tokens
        return torch.cat([units.tokens, units.tokens.masked_fill(units.given, self.request.mask_token_id)])


def apply_step(units: Units, proposed: Tensor, certainty: Tensor, taken: Tensor) -> None:
    """Commit the proposed tokens at `taken`, in place. All [U, W]."""
    units.tokens.copy_(torch.where(taken, proposed, units.tokens))
    units.confidence.copy_(torch.where(taken, certainty.float(), units.confidence))
    units.masked.logical_and_(~taken)
    units.taken.copy_(taken)


def guidance_canvas(canvas: Canvas, mask_token_id: int) -> Canvas:
    """The canvas twice over, [2B, L]: as it is, then with everything that was given masked."""
    doubled = {name: torch.cat([value, value]) for name, value in vars(canvas).items() if isinstance(value, Tensor)}
    hidden = canvas.tokens.masked_fill(canvas.given, mask_token_id)
    return replace(canvas, **(doubled | {"tokens": torch.cat([canvas.tokens, hidden])}))
