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
from qwen3llada.sampling.head import Proposed, make_head
from qwen3llada.sampling.open_blocks import Units
from qwen3llada.sampling.remasking import annealed
from qwen3llada.sampling.request import Request
from qwen3llada.sampling.revision import least_sure, outdated
from qwen3llada.sampling.unmasking import UNMASKING, Candidates


class StepRule:
    """What a step does before and after its forward pass. Only masked positions are projected to the vocabulary."""

    def __init__(self, model: Any, request: Request) -> None:
        self.request, self.guided = request, request.params.cfg_scale > 0
        self.head, self.mask = make_head(model, request), request.mask_token_id
        self.unmasking = UNMASKING[request.params.unmask]
        self.bound: float = getattr(request.params, self.unmasking.knob) if self.unmasking.knob else 0.0

    def before_pass(self, units: Units, number: int | Tensor) -> None:
        """Take back the tokens that step `number`, an int or one for each unit [U], masks again, in place."""
        if self.request.params.remask:
            _, again = units.of_step(number)
            units.mask_again(least_sure(units.log_prob, units.decoded & ~units.masked, again), self.mask)

    def after_pass(self, units: Units, number: int | Tensor, states: Tensor) -> None:
        """Commit what step `number`, an int or one for each unit [U], decides, in place.

        states: [U, W, D] final hidden states of the units; under guidance [2U, W, D], then those with masked prompts.
        """
        params, (counts, _) = self.request.params, units.of_step(number)
        committed, full = units.decoded & ~units.masked, ~units.masked.any(-1)
        wanted = units.decoded & ~units.finished[:, None] if params.edit_threshold else units.masked
        proposed = self._proposals(states, units, wanted.nonzero(as_tuple=True), number)
        taken = self.unmasking.choose(
            Candidates(
                masked=units.masked,
                score=proposed.scores,
                counts=counts,
                confidence=proposed.log_probs.exp(),
                entropy=proposed.entropy,
            ),
            self.bound,
        )
        units.commit(taken, proposed.tokens, proposed.log_probs)
        if params.revises:
            self._revise(units, proposed, committed, full, number)

    def _revise(self, units: Units, proposed: Proposed, committed: Tensor, full: Tensor, number: int | Tensor) -> None:
        """Replace outdated tokens, if asked for, and note which units are finished.

        Args:
            committed: [U, W] bool, tokens that the step's pass has seen.
            full: [U] bool, units that it saw without masks.
        """
        params, over = self.request.params, torch.ones_like(full)
        if params.edit_threshold:
            open_ = committed & ~units.finished[:, None]
            replaced = outdated(units.tokens, proposed.best, proposed.best_log_probs, open_, params.edit_threshold)
            units.replace(replaced, proposed.best, proposed.best_log_probs)
            units.edits.add_(full & ~units.finished)
            over = (full & ~replaced.any(-1)) | (units.edits >= params.max_post_edit_steps)
        units.finished.logical_or_(units.filled(number) & over)

    def _proposals(self, states: Tensor, units: Units, where: tuple[Tensor, ...], number: int | Tensor) -> Proposed:
        """What the logits propose at the positions `where`, each entry [U, W], 0 elsewhere."""
        keys, shares = units.keys.to(states.device), units.shares.to(states.device)
        number = number.to(states.device) if isinstance(number, Tensor) else number
        token, score, position = noise.step_keys(keys, number, units.width)[:, *where]
        found = self.head.propose(
            states[: len(units.rows)][where],
            states[len(units.rows) :][where] if self.guided else None,
            token,
            score,
            position,
            annealed(self.request.params.remasking_temperature, number, shares)[where[0]],
        )
        return Proposed(*(value.new_zeros(units.masked.shape).index_put(where, value) for value in found))


class EagerSampler(StepRule):
    """Runs the steps of a request by plain PyTorch operations."""

    backend = "eager"

    def __init__(self, model: Any, request: Request) -> None:
        super().__init__(model, request)
        canvas = guidance_canvas(request.canvas, request.mask_token_id) if self.guided else request.canvas
        self.context: Context = open_context(model, canvas, request.policy, request.params.cache, request.session)

    @property
    def passes(self) -> int:
        return self.context.passes

    def prepare(self, units: Units) -> None:
        """Nothing: the host is busy with the steps until their end."""

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
        self.before_pass(units, number)
        self.after_pass(units, number, self.context.hidden(self._seen(units)))

    def _seen(self, units: Units) -> Tensor:
        """The model's input. Under guidance the same tokens follow with all given ones masked."""
        if not self.guided:
            return units.tokens
        return torch.cat([units.tokens, units.tokens.masked_fill(units.given, self.request.mask_token_id)])


def guidance_canvas(canvas: Canvas, mask_token_id: int) -> Canvas:
    """The canvas twice, [2B, L]: unchanged, then with all given tokens masked."""
    doubled = {name: torch.cat([value, value]) for name, value in vars(canvas).items() if isinstance(value, Tensor)}
    hidden = canvas.tokens.masked_fill(canvas.given, mask_token_id)
    return replace(canvas, **(doubled | {"tokens": torch.cat([canvas.tokens, hidden])}))
