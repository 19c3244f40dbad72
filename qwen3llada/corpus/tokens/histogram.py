"""Counts by length, gathered as lengths come by."""

from typing import Any

import numpy as np

# Four bins an octave: fine enough to see a shape, few enough for any length.
EDGES = np.unique(np.ceil(2.0 ** (np.arange(0, 33 * 4) / 4)).astype(np.int64))


class Histogram:
    """How many lengths fell between powers of two (in quarter steps), their number, sum and maximum."""

    def __init__(self) -> None:
        self._bins = np.zeros(len(EDGES), np.int64)
        self.count = self.total = self.longest = 0

    def add(self, lengths: np.ndarray) -> None:
        """Take in [n] lengths; those below 1 count as 1."""
        if len(lengths):
            bins = np.searchsorted(EDGES, np.maximum(lengths, 1), side="right") - 1
            self._bins += np.bincount(bins, minlength=len(EDGES))
            self.count += len(lengths)
            self.total += int(lengths.sum())
            self.longest = max(self.longest, int(lengths.max()))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each bin between the shortest and the longest length: lengths `at_least`, and their `count`."""
        filled = np.flatnonzero(self._bins)
        if not filled.size:
            return []
        shown = range(filled[0], filled[-1] + 1)
        return [{"at_least": int(EDGES[i]), "count": int(self._bins[i])} for i in shown]
