"""What the units of a pass see. Shapes: U units."""

from enum import IntEnum
from typing import NamedTuple


class Range(IntEnum):
    """Rows of the tensor `ranges` [7, U] int32: the keys that each unit sees. A range ends before its `HIGH`."""

    OWN_LOW = 0  # range of the unit's own keys
    OWN_HIGH = 1
    OWNER = 2  # row of the prefix
    LOW = 3  # range of that row's keys
    HIGH = 4
    SKIP_LOW = 5  # range within LOW..HIGH that is hidden
    SKIP_HIGH = 6


class Blocks(NamedTuple):
    """Units of whole blocks. A query sees the keys of its own block and of the `window` blocks before it.

    Query q of a unit is in block (q + shift) // length; the last block may be shorter.
    """

    length: int
    window: int
    shift: int
