"""The canvas: prompts and the masks to be filled, laid out so that the blocks of a batch start at the same columns.

    row 0   · · p p p | m m m m   m m m m        · padding, never seen by anything
    row 1   p p p p p | m m m m   m m · ·        p prompt, m mask (or, in an infill, given text)
                      start      blocks of `block_length` columns

Under causal policies blocks are counted from a row's first token. The prompt's whole blocks stand before `start`; its
rest, a part of a block, stands after `start` and is completed by the first tokens of the answer:

    row 0   · · · · p p p p | p p m m   m m m m   m m · ·
    row 1   p p p p p p p p | m m m m   m m m m   · · · ·

Shapes: B rows, L columns, J blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FILLER = 0  # token id in columns that hold nothing; hidden from attention, so any id would do


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Where everything is. Nothing here changes while tokens are decoded, except `tokens` itself."""

    tokens: Tensor  # [B, L] int64
    valid: Tensor  # [B, L] bool, False in padding
    given: Tensor  # [B, L] bool, tokens that came from the caller and never change
    prompt_lengths: Tensor  # [B] int64, tokens of the prompt before `start`
    rests: Tensor  # [B] int64, tokens of the prompt from `start` on
    lengths: Tensor  # [B] int64, tokens from `start` on: rest of the prompt, masks and given ones
    start: int  # column at which every row's first block to decode starts
    width: int  # columns that some row uses; those after it only complete the last block
    block_length: int

    @property
    def blocks(self) -> int:
        return (self.tokens.shape[1] - self.start) // self.block_length

    @property
    def positions(self) -> Tensor:
        """Position ids [B, L]: a row counts from its own first token, wherever it stands."""
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (columns - (self.start - self.prompt_lengths)[:, None]).clamp(min=0)

    def masked_per_block(self) -> Tensor:
        """Number of positions to decode in each block: [B, J]."""
        return self.in_blocks(self.valid & ~self.given).sum(-1)

    def in_blocks(self, x: Tensor) -> Tensor:
        """The answer's columns of `x` [B, L] as [B, J, block_length], a view."""
        return x[:, self.start :].unflatten(1, (self.blocks, self.block_length))

    def shown(self, x: Tensor) -> Tensor:
        """`x` [B, L] as callers see it, [B, P + G]: prompts padded on the left to the longest, then the answers."""
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


def lay_out(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    mask_token_id: int,
    block_length: int,
    *,
    from_zero: bool = False,
) -> Canvas:
    """A canvas on the CPU from each row's prompt and answer; the mask tokens in an answer are what is to be decoded.

    `from_zero`: blocks are counted from the prompt's first token, not from the answer's.
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
