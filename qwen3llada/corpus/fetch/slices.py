"""Slices of splits, written as `datasets` writes them: train, train[:1%], train[100:200]+test[-5:]."""

import re
from dataclasses import dataclass

from qwen3llada.errors import InputError

_PART = re.compile(r"(?P<split>[\w.-]+)(?:\[(?P<start>-?\d+%?)?:(?P<end>-?\d+%?)?\])?")


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a split: row numbers or percentages (`"10%"`) of its start and end. Negative ones count from the end."""

    split: str
    start: str | None = None
    end: str | None = None

    def __str__(self) -> str:
        return self.split if self.whole else f"{self.split}[{self.start or ''}:{self.end or ''}]"

    @property
    def whole(self) -> bool:
        """Whether it is the whole split."""
        return self.start is None and self.end is None

    def rows(self, count: int) -> range:
        """Row numbers of the slice in a split of `count` rows. Percentages are rounded to the nearest row."""
        start = 0 if self.start is None else _absolute(self.start, count)
        end = count if self.end is None else _absolute(self.end, count)
        return range(start, max(start, end))


def parse_split(text: str) -> list[Slice]:
    """The slices that `text` adds up. Raises: InputError if it does not have the form above."""
    slices = []
    for part in text.split("+"):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise InputError(f"split={text!r} must be like train, train[:1%], train[100:200] or a sum of these")
        slices.append(Slice(match["split"], match["start"], match["end"]))
    return slices


def _absolute(boundary: str, count: int) -> int:
    if boundary.endswith("%"):
        if abs(percent := int(boundary[:-1])) > 100:
            raise InputError(f"a slice of a split must lie between -100% and 100%, not at {boundary}")
        position = round(percent * count / 100)
    else:
        position = int(boundary)
    return min(max(position + count if boundary.startswith("-") else position, 0), count)
