"""Record of a generation: which step decided each token, and with what confidence."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3llada.sampling.decoding import Step


@dataclass(frozen=True, kw_only=True)
class Decided:
    """One decoded position of a canvas."""

    token: int
    step: int  # number of the forward pass that committed the token, from 1
    confidence: float  # probability of the token in that pass


class TraceRecorder:
    """Records what each step of one generation decided. Pass it as `on_step`, or call it with every step."""

    def __init__(self) -> None:
        self.steps = 0  # forward passes seen so far
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
        """The decoded positions of a row from column `start` on: its answer and the rest of its last block."""
        at = self._at[row, start:].tolist()
        tokens, confidence = self._tokens[row, start:].tolist(), self._confidence[row, start:].tolist()
        return [
            Decided(token=token, step=step, confidence=sure)
            for token, step, sure in zip(tokens, at, confidence, strict=True)
            if step
        ]
