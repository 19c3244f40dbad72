"""Record of a generation: which step decided each token, and with what confidence."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3llada.sampling.decoding import Step


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a position held before its last change."""

    token: int | None  # None: it was masked again
    step: int  # number of the forward pass after which it held this, from 1
    confidence: float  # probability of the token in that pass; 0 for a mask


@dataclass(frozen=True, kw_only=True)
class Decided:
    """One decoded position of a canvas."""

    token: int
    step: int  # number of the forward pass that committed the token, from 1
    confidence: float  # probability of the token in that pass
    earlier: tuple[Change, ...] = ()  # where the token was revised: what stood there before, oldest first


class TraceRecorder:
    """Records what each step of one generation decided. Pass it as `on_step`, or call it with every step."""

    def __init__(self) -> None:
        self.steps = 0  # forward passes seen so far
        self._at: Tensor  # [B, L] int64, 0 where nothing was decided
        self._tokens: Tensor  # [B, L] int64
        self._confidence: Tensor  # [B, L] float32
        self._earlier: dict[tuple[int, int], list[Change]] = {}  # by row and column

    def __call__(self, step: Step) -> None:
        if self.steps == 0:
            self._at, self._tokens = torch.zeros_like(step.canvas), torch.zeros_like(step.canvas)
            self._confidence = torch.zeros_like(step.confidence)
        self.steps = step.index + 1
        if step.settled is not None:
            self._note_revisions(step)
        self._at[step.committed] = self.steps
        self._tokens = torch.where(step.committed, step.canvas, self._tokens)
        self._confidence = torch.where(step.committed, step.confidence, self._confidence)

    def _note_revisions(self, step: Step) -> None:
        """Keep what stood at decided positions that the step committed again, replaced or masked again."""
        if self.steps == 1:
            self._gone = torch.zeros_like(step.committed)  # [B, L] bool, masked again and not committed since
        ended = (self._at > 0) & ~self._gone & (step.committed | (step.canvas != self._tokens))
        masked_again = ended & ~step.committed
        for row, column in ended.nonzero().tolist():
            at = row, column
            changes = self._earlier.setdefault(at, [])
            token, sure = int(self._tokens[at]), float(self._confidence[at])
            changes.append(Change(token=token, step=int(self._at[at]), confidence=sure))
            if masked_again[at]:
                changes.append(Change(token=None, step=self.steps, confidence=0.0))
        self._gone = (self._gone & ~step.committed) | masked_again

    def row(self, row: int, start: int) -> list[Decided]:
        """The decoded positions of a row from column `start` on: its answer and the rest of its last block."""
        at = self._at[row, start:].tolist()
        tokens, confidence = self._tokens[row, start:].tolist(), self._confidence[row, start:].tolist()
        return [
            Decided(token=token, step=step, confidence=sure, earlier=tuple(self._earlier.get((row, column), ())))
            for column, (token, step, sure) in enumerate(zip(tokens, at, confidence, strict=True), start=start)
            if step
        ]
