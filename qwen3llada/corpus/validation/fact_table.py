"""The facts of all records of a split as one table, including facts between records."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada.corpus.validation.drift import Profile
from qwen3llada.corpus.validation.record_facts import FACTS, BlockFacts

#: Facts that are text or missing. All others are integers or missing.
TEXTS = ("unreadable", "malformed", "not_unicode", "roles", "unused_fields")


@dataclass(frozen=True)
class SplitFacts:
    """`table`: a row per record, a column per fact, and `duplicate_of` and `conflicts_with` (record numbers).

    `openings`: hash of a first prompt -> number of the first record that has it.
    """

    table: Any
    profile: Profile
    openings: Mapping[int, int]
    starts: list[int]  # record number of each block's first record
    places: list[tuple[Path, int]]  # file of each block, and the number of its first record in that file

    def place(self, number: int) -> tuple[Path, int]:
        """The file of a record, and its number in that file."""
        block = bisect_right(self.starts, number) - 1
        path, first = self.places[block]
        return path, first + number - self.starts[block]


def collect(blocks: Iterable[BlockFacts]) -> SplitFacts:
    """The table of a split, from the facts of its blocks in order."""
    import pandas as pd

    columns: dict[str, list[np.ndarray]] = {name: [] for name in FACTS}
    profile, number = Profile(), 0
    openings: dict[int, int] = {}
    starts: list[int] = []
    places: list[tuple[Path, int]] = []
    for block in blocks:
        for name, values in block.facts.items():
            columns[name].append(_compact(name, values))
        profile.add(block)
        for offset, opening in enumerate(block.openings):
            if opening is not None:
                openings.setdefault(opening, number + offset)
        starts.append(number)
        places.append((block.file, block.first))
        number += block.records
    table = pd.DataFrame({name: _column(name, parts) for name, parts in columns.items()})
    for name, values in (("duplicate_of", _duplicates(table)), ("conflicts_with", _conflicts(table))):
        table[name] = values
    return SplitFacts(table.drop(columns=["identity", "prompt", "answer"]), profile, openings, starts, places)


def _compact(name: str, values: list[Any]) -> np.ndarray:
    if name in TEXTS:  # store equal texts once: most records have the same roles
        known: dict[Any, Any] = {}
        return np.array([known.setdefault(value, value) for value in values], object)
    return np.array([-1 if value is None else value for value in values], np.int64)


def _column(name: str, parts: list[np.ndarray]) -> Any:
    import pandas as pd

    if name in TEXTS:
        return pd.Series(np.concatenate([np.empty(0, object), *parts]), dtype=object)
    values = np.concatenate([np.empty(0, np.int64), *parts])
    return pd.Series(pd.arrays.IntegerArray(values, values < 0))


def _duplicates(table: Any) -> Any:
    """For each record the first equal record; missing for the first itself."""
    return _first(table, "identity").where(lambda first: first != table.index)


def _conflicts(table: Any) -> Any:
    """For each record the first record with the same prompt, if its answer differs."""
    first = _first(table, "prompt")
    answers = table["answer"]
    known = first.notna()
    differs = (answers[first[known].astype(int)].to_numpy() != answers[known].to_numpy()).astype(bool)
    conflicting = known.copy()
    conflicting[known] = differs
    return first.where(conflicting)


def _first(table: Any, column: str) -> Any:
    """For each record the number of the first record with the same value in `column`; missing if it has no value."""
    import pandas as pd

    numbers = pd.Series(pd.array(table.index.to_numpy(), dtype="Int64"), index=table.index)
    return numbers.groupby(table[column]).transform("min").where(table[column].notna())
