"""The canvas: prompts and masks, laid out so that each block starts at the same column in every row.

    row 0   · · p p p | m m m m   m m m m        · padding, never seen by anything
    row 1   p p p p p | m m m m   m m · ·        p prompt, m mask (or, in an infill, given text)
                      start      blocks of `block_length` columns

Causal policies count blocks from a row's first token. The prompt's whole blocks come before `start`. Its remaining
tokens come after `start`; the first tokens of the answer complete their block:

    row 0   · · · · p p p p | p p m m   m m m m   m m · ·
    row 1   p p p p p p p p | m m m m   m m m m   · · · ·

Shapes: B rows, L columns, J blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FILLER = 0  # token id of empty columns; any id would do, because attention hides them


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Layout of a batch. Decoding changes `tokens` and nothing else."""

    tokens: Tensor  # [B, L] int64
    valid: Tensor  # [B, L] bool, False in padding
    given: Tensor  # [B, L] bool, tokens from the caller, which never change
    prompt_lengths: Tensor  # [B] int64, tokens of the prompt before `start`
    rests: Tensor  # [B] int64, tokens of the prompt from `start` on
    lengths: Tensor  # [B] int64, tokens from `start` on: rest of the prompt, masks and given tokens
    start: int  # column of the first block to decode, in every row
    width: int  # columns up to the longest answer's end; later ones only complete the last block
    block_length: int

    @property
    def blocks(self) -> int:
        return (self.tokens.shape[1] - self.start) // self.block_length

    @property
    def positions(self) -> Tensor:
        """Position ids [B, L], counted from each row's first token."""
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (columns - (self.start - self.prompt_lengths)[:, None]).clamp(min=0)

    def masked_per_block(self) -> Tensor:
        """Number of positions to decode in each block: [B, J]."""
        return self.in_blocks(self.valid & ~self.given).sum(-1)

    def in_blocks(self, x: Tensor) -> Tensor:
        """A view of the answers' columns of `x` [B, L] as [B, J, block_length]."""
        return x[:, self.start :].unflatten(1, (self.blocks, self.block_length))

    def shown(self, x: Tensor) -> Tensor:
        """`x` [B, L] as callers see it, [B, P + G]: prompts left-padded to the longest, then the answers."""
        if not self.rests.any():
            return x[:, : self.width]
        longest = int((self.prompt_lengths + self.rests).max())
        columns = longest + int((self.lengths - self.rests).max())
        source = torch.arange(columns, device=x.device) - longest + self.start + self.rests[:, None].to(x.device)
        inside = (source >= 0) & (source < x.shape[1])
        return x.gather(1, source.clamp(0, x.shape[1] - 1)) * inside

    def to(self, device: torch.device | str) -> "Canvas":
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Position of one block, or of several neighbouring ones, in each of U rows."""

    positions: Tensor  # [U, W] int64
    own: Tensor  # [U, W] bool, False at padding
    numbers: Tensor  # [W], block numbers

    def take(self, index: Tensor) -> "Block":
        """The block for the rows `index` only."""
        return replace(self, positions=self.positions[index], own=self.own[index])

    def followed_by(self, other: "Block") -> "Block":
        """Both blocks as one."""
        return Block(
            positions=torch.cat([self.positions, other.positions], 1),
            own=torch.cat([self.own, other.own], 1),
            numbers=torch.cat([self.numbers, other.numbers]),
        )


def lay_out(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    mask_token_id: int,
    block_length: int,
    *,
    from_zero: bool = False,
) -> Canvas:
    """A canvas on the CPU from each row's prompt and answer. The mask tokens in an answer are decoded.

    `from_zero`: count blocks from the prompt's first token instead of the answer's.
    """
    rests = [len(prompt) % block_length if from_zero else 0 for prompt in prompts]
    answers = [[*p[len(p) - rest :], *a] for p, a, rest in zip(prompts, answers, rests, strict=True)]
    prompts = [prompt[: len(prompt) - rest] for prompt, rest in zip(prompts, rests, strict=True)]
    start, longest = max(map(len, prompts)), max(map(len, answers))
    columns = start + -(-longest // block_length) * block_length
    tokens = torch.full((len(prompts), columns), FILLER, dtype=torch.int64)
    valid = torch.zeros(len(prompts), columns, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        left, right = start - len(prompt), start + len(answer)
        tokens[row, left:right] = torch.tensor([*prompt, *answer], dtype=torch.int64)
        valid[row, left:right] = True
    given = valid & (tokens != mask_token_id)
    given[:, :start] = valid[:, :start]
    return Canvas(
        tokens=tokens,
        valid=valid,
        given=given,
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        rests=torch.tensor(rests),
        lengths=torch.tensor([len(answer) for answer in answers]),
        start=start,
        width=start + longest,
        block_length=block_length,
    )
