"""A row of a running batch, as its callers see it."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from qwen3llada.sampling.open_blocks import cut
from qwen3llada.sampling.request import Request


@dataclass(kw_only=True, eq=False)
class RunningRow:
    """One request in the batch. Shapes: L columns of its canvas."""

    request: Request  # of this row alone
    passes: int = 0
    finished: bool = False
    tokens: Tensor = field(init=False)  # [1, L] canvas so far
    confidence: Tensor = field(init=False)  # [1, L], probability of each token when it was committed
    settled: Tensor | None = field(init=False)  # [1, L] bool, tokens that no later step changes; None: all decoded ones

    def __post_init__(self) -> None:
        canvas, self.tokens = self.request.canvas, self.request.canvas.tokens.clone()
        self.confidence = torch.zeros(self.tokens.shape, device=self.tokens.device)
        self.settled = torch.zeros_like(canvas.valid) if self.request.params.revises else None

    @cached_property
    def answer_columns(self) -> slice:
        """Columns of the answer on the canvas [1, L]."""
        canvas = self.request.layout
        return slice(canvas.start + int(canvas.rests[0]), canvas.start + int(canvas.lengths[0]))

    def answer(self) -> Tensor:
        """The answer up to its EOS. Of a finished row."""
        return cut(self.request, self.tokens)[0]
