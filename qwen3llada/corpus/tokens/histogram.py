"""Histogram of lengths, filled incrementally."""

from typing import Any

import numpy as np

# Four bins per octave: fine enough to show a shape, few enough for any length.
EDGES = np.unique(np.ceil(2.0 ** (np.arange(0, 33 * 4) / 4)).astype(np.int64))


class Histogram:
    """Counts of lengths in quarter-octave bins, with their number, sum and maximum."""

    def __init__(self) -> None:
        self._bins = np.zeros(len(EDGES), np.int64)
        self.count = self.total = self.longest = 0

    def add(self, lengths: np.ndarray) -> None:
        """Add lengths [n]. Lengths below 1 count as 1."""
        if len(lengths):
            bins = np.searchsorted(EDGES, np.maximum(lengths, 1), side="right") - 1
            self._bins += np.bincount(bins, minlength=len(EDGES))
            self.count += len(lengths)
            self.total += int(lengths.sum())
            self.longest = max(self.longest, int(lengths.max()))

    def rows(self) -> list[dict[str, Any]]:
        """One row per bin from the shortest to the longest length: lengths `at_least`, and their `count`."""
        filled = np.flatnonzero(self._bins)
        if not filled.size:
            return []
        shown = range(filled[0], filled[-1] + 1)
        return [{"at_least": int(EDGES[i]), "count": int(self._bins[i])} for i in shown]
