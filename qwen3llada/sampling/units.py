"""The blocks that are decoded together, in the order in which they are.

Shapes: B rows, L columns of the canvas, J blocks, U units (a unit is one block of one row), W columns of a block,
S steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3llada.sampling import noise
from qwen3llada.sampling.request import Request


@dataclass(frozen=True, kw_only=True)
class Units:
    """One block of every row, or all blocks of all rows, while they are decoded. The last four change in place."""

    rows: Tensor  # [U] int64
    blocks: Tensor  # [U] int64
    given: Tensor  # [U, W] bool
    keys: Tensor  # [U] int64, of this block of this row
    counts: Tensor  # [U, S] int64, positions to commit in each step
    shares: Tensor  # [U] int64, steps of the block
    steps: int  # that fixed unmasking takes
    tokens: Tensor  # [U, W] int64
    masked: Tensor  # [U, W] bool, still to be decoded
    taken: Tensor  # [U, W] bool, committed by the last step
    confidence: Tensor  # [U, W] float32, probability of each decoded token when it was committed

    @classmethod
    def of(cls, request: Request, tokens: Tensor, rows: Tensor, blocks: Tensor, width: int) -> "Units":
        canvas = request.canvas
        at = (rows, blocks, slice(0, width))
        given, valid = canvas.in_blocks(canvas.given)[at], canvas.in_blocks(canvas.valid)[at]
        counts = request.schedule.counts[rows, blocks]
        return cls(
            rows=rows,
            blocks=blocks,
            given=given,
            keys=noise.fold(request.row_keys[rows], blocks),
            counts=counts,
            shares=request.schedule.shares[rows, blocks],
            steps=int((counts > 0).any(0).sum()),
            tokens=canvas.in_blocks(tokens)[at],
            masked=valid & ~given,
            taken=torch.zeros_like(given),
            confidence=torch.zeros(given.shape, device=given.device),
        )

    @property
    def width(self) -> int:
        return self.given.shape[1]

    @property
    def place(self) -> tuple[Tensor, Tensor, slice]:
        """Index of the units in anything of shape [B, J, block_length]."""
        return self.rows, self.blocks, slice(0, self.width)

    def step_numbers(self, fixed: bool) -> Iterator[int]:
        """Numbers of the steps until nothing is masked: known beforehand under fixed unmasking, else looked up."""
        if fixed:
            yield from range(self.steps)
        else:
            step = 0
            while self.masked.any():
                yield step
                step += 1


def waves(request: Request, tokens: Tensor) -> Iterator[Units]:
    """The units to decode together, one wave after the other, from the canvas [B, L] as it is when each is asked for.

    Block by block, rows leave when nothing of them is left to decode or when the block just decoded holds an EOS.
    """
    canvas = request.canvas
    open_blocks = canvas.masked_per_block() > 0
    rows = torch.arange(len(tokens), device=tokens.device)
    numbers = torch.arange(canvas.blocks, device=tokens.device)
    if request.params.parallel_blocks:
        every = rows.repeat_interleave(canvas.blocks), numbers.repeat(len(rows))
        yield Units.of(request, tokens, *every, width=canvas.block_length)
        return
    for block in range(canvas.blocks):
        rows = rows[open_blocks[rows, block:].any(-1)]
        if not len(rows):
            return
        first = canvas.start + block * canvas.block_length
        width = min(canvas.block_length, canvas.width - first)
        yield Units.of(request, tokens, rows, numbers[block].expand(len(rows)), width)
        ended = is_end(request, tokens)[rows, first : first + width].any(-1)
        rows = rows[~ended]


def is_end(request: Request, tokens: Tensor) -> Tensor:
    """Decoded positions that hold an EOS: [B, L] bool."""
    ends = torch.tensor(request.eos_token_ids, dtype=tokens.dtype, device=tokens.device)
    return torch.isin(tokens, ends) & request.canvas.valid & ~request.canvas.given


def cut(request: Request, tokens: Tensor) -> list[Tensor]:
    """Each row's answer up to its first EOS. The blocks after that one are filled with EOS, in place.

    Decoded block by block they still hold masks, decoded at once they hold tokens that nobody asked for.
    """
    canvas = request.canvas
    ends = is_end(request, tokens)
    answers = []
    for row, length in enumerate(canvas.lengths.tolist()):
        answer = tokens[row, canvas.start : canvas.start + length]
        found = ends[row, canvas.start : canvas.start + length].nonzero()
        if len(found):
            first = int(found[0])
            answer[(first // canvas.block_length + 1) * canvas.block_length :] = request.eos_token_ids[0]
            answer = answer[: first + 1]
        answers.append(answer.clone())
    return answers
