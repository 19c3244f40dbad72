"""The blocks that are decoded together, in order.

Shapes: B rows, L columns of the canvas, J blocks, U units (a unit is one block of one row), W columns of a block,
S steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.request import Request


@dataclass(frozen=True, kw_only=True)
class Units:
    """Blocks that are decoded together: one block of every row, or all blocks of all rows.

    Control tensors are on the CPU; tensors that the model reads or writes are on its device.
    """

    rows: Tensor  # [U] int64, CPU, row of each unit
    blocks: Tensor  # [U] int64, CPU, block of each unit
    counts: Tensor  # [U, S] int64, CPU, positions to commit in each step
    shares: Tensor  # [U] int64, CPU, number of steps of the block
    keys: Tensor  # [U] int64, CPU, noise key of (row, block)
    place: tuple[Tensor, Tensor, slice]  # index of the units in any device tensor [B, J, block_length]
    given: Tensor  # [U, W] bool
    tokens: Tensor  # [U, W] int64, changed in place
    masked: Tensor  # [U, W] bool, still to be decoded, changed in place
    taken: Tensor  # [U, W] bool, committed by the last step, changed in place
    confidence: Tensor  # [U, W] float32, probability of each token when it was committed, changed in place

    @classmethod
    def of(cls, request: Request, tokens: Tensor, rows: Tensor, blocks: Tensor, width: int) -> "Units":
        canvas, device = request.canvas, tokens.device
        place = rows.to(device), blocks.to(device), slice(0, width)
        given, valid = canvas.in_blocks(canvas.given)[place], canvas.in_blocks(canvas.valid)[place]
        return cls(
            rows=rows,
            blocks=blocks,
            counts=request.unmask_plan.counts[rows, blocks],
            shares=request.unmask_plan.shares[rows, blocks],
            keys=noise.fold(request.row_keys[rows], blocks),
            place=place,
            given=given,
            tokens=canvas.in_blocks(tokens)[place],
            masked=valid & ~given,
            taken=torch.zeros_like(given),
            confidence=torch.zeros(given.shape, device=device),
        )

    @property
    def width(self) -> int:
        return self.given.shape[1]

    def counts_at(self, number: int | Tensor) -> Tensor:
        """Positions to commit in step `number`, or in one step for each unit [U]: [U]. After the plan's end 0."""
        steps = self.counts.shape[1]
        numbers = torch.as_tensor(number, device=self.counts.device).expand(len(self.counts))
        counts = self.counts.gather(1, numbers.clamp(max=steps - 1)[:, None])[:, 0] if steps else numbers * 0
        return counts * (numbers < steps)

    def step_numbers(self, fixed: bool) -> Iterator[int]:
        """Step numbers until nothing is masked. Known in advance under fixed unmasking, else by checking."""
        if fixed:
            yield from range(int((self.counts > 0).any(0).sum()))
        else:
            step = 0
            while self.masked.any():
                yield step
                step += 1


def waves(request: Request, tokens: Tensor) -> Iterator[Units]:
    """Yield the units to decode together, one wave after another, from the current content of the canvas [B, L].

    Block by block, a row leaves when nothing of it is left to decode or when its last decoded block holds an EOS.
    """
    layout = request.layout
    open_blocks = layout.masked_per_block() > 0
    rows, numbers = torch.arange(len(tokens)), torch.arange(layout.blocks)
    if request.params.parallel_blocks:
        every = rows.repeat_interleave(layout.blocks), numbers.repeat(len(rows))
        yield Units.of(request, tokens, *every, width=layout.block_length)
        return
    for block in range(layout.blocks):
        rows = rows[open_blocks[rows, block:].any(-1)]
        if not len(rows):
            return
        first = layout.start + block * layout.block_length
        width = min(layout.block_length, layout.width - first)
        yield Units.of(request, tokens, rows, numbers[block].expand(len(rows)), width)
        if request.eos_token_ids:
            ended = is_end(request, tokens)[:, first : first + width].any(-1).cpu()
            rows = rows[~ended[rows]]


def is_end(request: Request, tokens: Tensor) -> Tensor:
    """Decoded positions that hold an EOS: [B, L] bool."""
    ends = torch.tensor(request.eos_token_ids, dtype=tokens.dtype, device=tokens.device)
    return torch.isin(tokens, ends) & request.canvas.valid & ~request.canvas.given


def cut(request: Request, tokens: Tensor) -> list[Tensor]:
    """Each row's answer up to its first EOS. Later blocks on the canvas are overwritten with EOS, in place.

    Under block-by-block decoding they still hold masks; under parallel decoding, tokens after the end of the answer.
    """
    canvas = request.layout
    ends = is_end(request, tokens).cpu()
    answers = []
    for row, (rest, length) in enumerate(zip(canvas.rests.tolist(), canvas.lengths.tolist(), strict=True)):
        answer = tokens[row, canvas.start : canvas.start + length]
        found = ends[row, canvas.start : canvas.start + length].nonzero()
        if len(found):
            first = int(found[0])
            answer[(first // canvas.block_length + 1) * canvas.block_length :] = request.eos_token_ids[0]
            answer = answer[: first + 1]
        answers.append(answer[rest:].clone())
    return answers
