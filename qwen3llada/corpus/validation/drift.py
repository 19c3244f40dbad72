"""Statistical profile of a split of conversations, for any language, and its distance from a baseline."""

from typing import Any

import numpy as np

from qwen3llada.corpus.tokens.histogram import EDGES, Histogram
from qwen3llada.corpus.validation.record_facts import BlockFacts
from qwen3llada.errors import InputError


class Profile:
    """Distributions of prompt and answer lengths in characters, of turns, and of bytes."""

    def __init__(self) -> None:
        self.lengths = {name: Histogram() for name in ("prompt_characters", "answer_characters", "turns")}
        self.bytes = np.zeros(256, np.int64)

    def add(self, found: BlockFacts) -> None:
        """Add the records of a block."""
        for name, histogram in self.lengths.items():
            histogram.add(np.array(getattr(found, name), np.int64))
        self.bytes += found.bytes

    def summary(self) -> dict[str, Any]:
        """The profile as it is saved: counts by length (lower edges of the bins) and by byte."""
        counts: dict[str, Any] = {name: histogram.rows() for name, histogram in self.lengths.items()}
        return counts | {"bytes": self.bytes.tolist()}


def drift(baseline: dict[str, Any], now: dict[str, Any]) -> dict[str, float]:
    """Jensen-Shannon divergence in bits between two profile summaries, per distribution.

    0 = equal, 1 = nothing in common (Lin 1991, "Divergence measures based on the Shannon entropy").
    Raises: InputError if `baseline` is no summary.
    """
    if missing := [name for name in now if name not in baseline]:
        raise InputError(f"a baseline must have {', '.join(now)}; this one has no {', '.join(missing)}")
    return {name: _divergence(_counts(baseline[name]), _counts(now[name])) for name in now}


def _counts(distribution: list[Any]) -> np.ndarray:
    if distribution and isinstance(distribution[0], dict):
        counts = np.zeros(len(EDGES))
        for row in distribution:
            counts[np.searchsorted(EDGES, row["at_least"])] = row["count"]
        return counts
    return np.array(distribution, np.float64)


def _divergence(one: np.ndarray, other: np.ndarray) -> float:
    if not one.size or not other.size or not one.sum() or not other.sum():
        return float(bool(one.sum()) != bool(other.sum()))
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2

    def relative_entropy(a: np.ndarray) -> float:
        some = a > 0
        return float((a[some] * np.log2(a[some] / middle[some])).sum())

    return max(0.0, (relative_entropy(p) + relative_entropy(q)) / 2)
