"""The blocks that are decoded together, in order.

Shapes: B rows, L columns of the canvas, J blocks, U units (a unit is one block of one row), W columns of a block,
S steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.request import Request
from qwen3llada.sampling.revision import with_loop
from qwen3llada.sampling.unmasking import UNMASKING


@dataclass(frozen=True, kw_only=True)
class Units:
    """Blocks that are decoded together: one block of every row, or all blocks of all rows.

    Control tensors are on the CPU; tensors that the model reads or writes are on its device.
    """

    rows: Tensor  # [U] int64, CPU, row of each unit
    blocks: Tensor  # [U] int64, CPU, block of each unit
    counts: Tensor  # [U, S] int64, CPU, positions to commit in each step
    again: Tensor  # [U, S] int64, CPU, tokens to mask again before each step
    shares: Tensor  # [U] int64, CPU, number of steps of the block
    keys: Tensor  # [U] int64, CPU, noise key of (row, block)
    place: tuple[Tensor, Tensor, slice]  # index of the units in any device tensor [B, J, block_length]
    given: Tensor  # [U, W] bool
    decoded: Tensor  # [U, W] bool, positions of this block that are decoded: neither given nor padding
    tokens: Tensor  # [U, W] int64, changed in place
    masked: Tensor  # [U, W] bool, still to be decoded, changed in place
    taken: Tensor  # [U, W] bool, committed or replaced by the last step, changed in place
    confidence: Tensor  # [U, W] float32, probability of each token when it was committed, changed in place
    log_prob: Tensor  # [U, W] float64, its logarithm, changed in place; kept only for a loop that masks again
    edits: Tensor  # [U] int64, passes made after the last mask was gone, changed in place
    finished: Tensor  # [U] bool, no later step changes the block, changed in place

    @classmethod
    def of(cls, request: Request, tokens: Tensor, rows: Tensor, blocks: Tensor, width: int) -> "Units":
        canvas, device = request.canvas, tokens.device
        # Without waiting for the device, which still computes the block before: the host prepares this one meanwhile.
        place = rows.to(device, non_blocking=True), blocks.to(device, non_blocking=True), slice(0, width)
        given, valid = canvas.in_blocks(canvas.given)[place], canvas.in_blocks(canvas.valid)[place]
        decoded = valid & ~given
        plan = with_loop(
            request.unmask_plan.counts[rows, blocks], request.unmask_plan.shares[rows, blocks], request.params
        )
        return cls(
            rows=rows,
            blocks=blocks,
            counts=plan.counts,
            again=plan.again,
            shares=plan.shares,
            keys=noise.fold(request.row_keys[rows], blocks),
            place=place,
            given=given,
            decoded=decoded,
            tokens=canvas.in_blocks(tokens)[place],
            masked=decoded.clone(),
            taken=torch.zeros_like(given),
            confidence=torch.zeros(given.shape, device=device),
            log_prob=torch.zeros(given.shape, dtype=torch.float64, device=device),
            edits=torch.zeros(len(given), dtype=torch.int64, device=device),
            finished=~decoded.any(-1),
        )

    @property
    def width(self) -> int:
        return self.given.shape[1]

    def step_numbers(self, params: DecodeParams) -> Iterator[int]:
        """Step numbers until the units are finished. Known in advance under fixed unmasking, else by checking."""
        if UNMASKING[params.unmask].knob is None and not params.edit_threshold:
            yield from range(int((self.counts > 0).any(0).sum()))
            return
        step = 0
        while self.unfinished(params):
            yield step
            step += 1

    def of_step(self, number: int | Tensor) -> tuple[Tensor, Tensor]:
        """Positions to commit and tokens to mask again in a step: each [U] int64, on the device.

        number: of the step in its block, or one number for each unit [U]. Nothing is planned after a block's last step.
        """
        last = self.counts.shape[1] - 1
        numbers = torch.as_tensor(number).expand(len(self.shares))
        inside, index = numbers <= last, numbers.clamp(max=last)[:, None]
        counts, again = (
            plan.gather(1, index)[:, 0] * inside if last >= 0 else torch.zeros_like(self.shares)
            for plan in (self.counts, self.again)
        )
        return counts.to(self.tokens.device), again.to(self.tokens.device)

    def mask_again(self, positions: Tensor, mask_token_id: int) -> None:
        """Take back the tokens at `positions` [U, W] bool, in place."""
        self.tokens.masked_fill_(positions, mask_token_id)
        self.confidence.masked_fill_(positions, 0)
        self.masked.logical_or_(positions)

    def commit(self, positions: Tensor, tokens: Tensor, log_prob: Tensor) -> None:
        """Enter the tokens at `positions` [U, W] bool, in place, as those that the step commits."""
        self.taken.copy_(positions)
        self.masked.logical_and_(~positions)
        self._enter(positions, tokens, log_prob)

    def replace(self, positions: Tensor, tokens: Tensor, log_prob: Tensor) -> None:
        """Enter other tokens at committed `positions` [U, W] bool, in place, after the step's `commit`."""
        self.taken.logical_or_(positions)
        self._enter(positions, tokens, log_prob)

    def _enter(self, positions: Tensor, tokens: Tensor, log_prob: Tensor) -> None:
        self.tokens.copy_(torch.where(positions, tokens, self.tokens))
        self.confidence.copy_(torch.where(positions, log_prob.exp().float(), self.confidence))
        self.log_prob.copy_(torch.where(positions, log_prob, self.log_prob))

    def filled(self, number: int | Tensor) -> Tensor:
        """Units without masks to which no step after `number`, an int or [U], adds any: [U] bool."""
        after = torch.arange(self.again.shape[1]) > torch.as_tensor(number).expand(len(self.shares))[:, None]
        later = (self.again.bool() & after).any(-1).to(self.masked.device)
        return ~self.masked.any(-1) & ~later

    def settled(self) -> Tensor:
        """Tokens of units that no later step changes: [U, W] bool. For samplers that keep `finished`."""
        return self.decoded & self.finished[:, None]

    def unfinished(self, params: DecodeParams) -> bool:
        """Whether any unit has a mask left, or tokens that a later step may replace. Waits for the device."""
        return bool((~self.finished if params.edit_threshold else self.masked).any())


def waves(request: Request, tokens: Tensor, prepare: Callable[[Units], None] = lambda units: None) -> Iterator[Units]:
    """Yield the units to decode together, one wave after another, from the current content of the canvas [B, L].

    Block by block, a row leaves when nothing of it is left to decode or when its last decoded block holds an EOS.

    Args:
        prepare: called with the next units before it is known whether rows have ended: while the device still computes
            the block before. If rows have ended, other units are yielded.
    """
    layout = request.layout
    open_blocks = layout.masked_per_block() > 0
    rows, numbers = torch.arange(len(tokens)), torch.arange(layout.blocks)
    if request.params.parallel_blocks:
        every = rows.repeat_interleave(layout.blocks), numbers.repeat(len(rows))
        yield Units.of(request, tokens, *every, width=layout.block_length)
        return
    ended: Tensor | None = None  # [B] bool, rows whose last decoded block holds an EOS
    for block in range(layout.blocks):
        rows = rows[open_blocks[rows, block:].any(-1)]
        if not len(rows):
            return
        first = layout.start + block * layout.block_length
        width = min(layout.block_length, layout.width - first)
        units = Units.of(request, tokens, rows, numbers[block].expand(len(rows)), width)
        if ended is not None:
            prepare(units)
            going_on = rows[~ended.cpu()[rows]]
            if not len(going_on):
                return
            if len(going_on) < len(rows):
                rows = going_on
                units = Units.of(request, tokens, rows, numbers[block].expand(len(rows)), width)
        yield units
        if request.eos_token_ids:
            ended = is_end(request, tokens)[:, first : first + width].any(-1)


def is_end(request: Request, tokens: Tensor) -> Tensor:
    """Decoded positions that hold an EOS: [B, L] bool. Does not wait for the device."""
    found = torch.zeros_like(tokens, dtype=torch.bool)
    for token in request.eos_token_ids:  # a tensor of them would have to be copied to the device, which waits for it
        found |= tokens == token
    return found & request.canvas.valid & ~request.canvas.given


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
