"""How an answer came about: the step that decided each token, and how sure the model was of it then."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3llada.sampling.decoding import Step


@dataclass(frozen=True, kw_only=True)
class Decided:
    """One position of a canvas."""

    token: int
    step: int  # number of the forward pass that committed it, from 1
    confidence: float  # probability that the token had then


class Recorder:
    """Remembers what each step of one generation decided; give it as `on_step`, or call it with every step."""

    def __init__(self) -> None:
        self.steps = 0  # forward passes of unmasking seen so far
        self._at: Tensor  # [B, L] int64, 0 where nothing was decided
        self._tokens: Tensor  # [B, L] int64
        self._confidence: Tensor  # [B, L] float32

    def __call__(self, step: Step) -> None:
        if self.steps == 0:
            self._at, self._tokens = torch.zeros_like(step.canvas), torch.zeros_like(step.canvas)
            self._confidence = torch.zeros_like(step.confidence)
        self.steps = step.index + 1
        self._at[step.committed] = self.steps
        self._tokens = torch.where(step.committed, step.canvas, self._tokens)
        self._confidence = torch.where(step.committed, step.confidence, self._confidence)

    def row(self, row: int, start: int) -> list[Decided]:
        """What was decided of a row from column `start` on: its answer, and what its last block holds after that."""
        at = self._at[row, start:].tolist()
        tokens, confidence = self._tokens[row, start:].tolist(), self._confidence[row, start:].tolist()
        return [
            Decided(token=token, step=step, confidence=sure)
            for token, step, sure in zip(tokens, at, confidence, strict=True)
            if step
        ]
