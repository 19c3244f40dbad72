"""What a row of a running batch computes in a pass, in units of W tokens: its open block, and what that block reads."""

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from qwen3llada.modeling.attention import is_causal, keeps_prompt
from qwen3llada.sampling.block_contexts import Policy


class Kept(Enum):
    """Which keys and values of a row stay as they are once they are computed."""

    BLOCKS = "prompt and finished blocks"
    PROMPT = "prompt"
    NOTHING = "nothing"

    @classmethod
    def by(cls, policy: Policy) -> "Kept":
        if is_causal(policy):
            return cls.BLOCKS
        return cls.PROMPT if keeps_prompt(policy) else cls.NOTHING


class Unit(NamedTuple):
    """W tokens of a row from `column` on. Columns are counted from the row's first token."""

    column: int
    own: int  # tokens of itself that it sees, from the first
    low: int  # first and, excluded, last column that it sees of what is stored
    high: int
    stored: int = 0  # tokens whose keys and values are stored, from the first
    decoded: int = 0  # tokens of the block that is decoded, else 0


class Extent(NamedTuple):
    """Where a row's open block is."""

    kept: int  # columns whose keys and values are stored and final
    start: int  # first column of the first block
    first: int  # first column of the open block
    end: int  # after the row's last column
    width: int  # W, tokens of a block


def units_of(kept: Kept, extent: Extent, window: int) -> Iterator[Unit]:
    """The units that a row needs for the next step of its open block, which comes last where anything is kept.

    window: blocks before its own that a block sees, under causal policies.
    """
    _, start, first, end, width = extent
    own = min(width, end - first)
    if kept is Kept.BLOCKS:
        for column in range(extent.kept, first, width):
            yield Unit(column, width, max(0, column - window * width), column, stored=width)
        yield Unit(first, own, max(0, first - window * width), first, decoded=own)
    elif kept is Kept.PROMPT:
        for column in range(0, start if extent.kept < start else 0, width):
            yield Unit(column, 0, 0, start, stored=min(width, start - column))
        yield Unit(first, own, 0, start, decoded=own)
    else:  # all tokens may have changed, and all see all
        for column in range(0, start, width):
            yield Unit(column, 0, 0, end, stored=min(width, start - column))
        for column in range(start, end, width):
            count = min(width, end - column)
            yield Unit(column, 0, 0, end, stored=count, decoded=count if column == first else 0)
