"""The steps of a request by plain PyTorch operations, on any device.

Shapes: B rows, L columns of the canvas, U units (a unit is one block of one row), W columns of a block.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.block_contexts import Context, open_context
from qwen3llada.sampling.canvas import Canvas
from qwen3llada.sampling.head import make_head
from qwen3llada.sampling.open_blocks import Units
from qwen3llada.sampling.remasking import annealed, commit
from qwen3llada.sampling.request import Request


class EagerSampler:
    """Runs the steps by plain PyTorch operations. Only masked positions are projected to the vocabulary."""

    backend = "eager"
    context: Context

    def __init__(self, model: Any, request: Request, context: Context | None = None) -> None:
        """`context`: the sampler's access to the model, by default the fastest exact one."""
        self.request, self.guided = request, request.params.cfg_scale > 0
        self.head = make_head(model, request)
        if context is not None:
            self.context = context
            return
        canvas = guidance_canvas(request.canvas, request.mask_token_id) if self.guided else request.canvas
        self.context = open_context(model, canvas, request.policy, request.params.cache)

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
    def step(self, units: Units, number: int | Tensor) -> None:
        """One step in place. `number`: of the step in its block; a tensor [U] if the units are at different steps."""
        params = self.request.params
        states = self.context.hidden(self._seen(units))
        where = units.masked.nonzero(as_tuple=True)
        keys, shares = units.keys.to(states.device), units.shares.to(states.device)
        number = number.to(states.device) if isinstance(number, Tensor) else number
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
        counts = units.counts_at(number).to(states.device)
        threshold = params.confidence_threshold if params.unmask == "threshold" else None
        apply_step(units, proposed, certainty, commit(scores, units.masked, counts, certainty, threshold))

    def _seen(self, units: Units) -> Tensor:
        """The model's input. Under guidance the same tokens follow with all given ones masked."""
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
    """The canvas twice, [2B, L]: unchanged, then with all given tokens masked."""
    doubled = {name: torch.cat([value, value]) for name, value in vars(canvas).items() if isinstance(value, Tensor)}
    hidden = canvas.tokens.masked_fill(canvas.given, mask_token_id)
    return replace(canvas, **(doubled | {"tokens": torch.cat([canvas.tokens, hidden])}))
