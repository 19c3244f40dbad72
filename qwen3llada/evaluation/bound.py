"""A bound or a likelihood with its standard error."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Bound:
    """An estimate in nats, per token or of a whole answer, and how far it may be off."""

    nats: float
    standard_error: float  # nan where one draw is all there is
    tokens: int  # that were predicted

    @property
    def perplexity(self) -> float:
        """exp of the nats per token."""
        return math.exp(self.nats)

    def known_error(self, digits: int) -> float | None:
        """The standard error, rounded, for JSON, which has no nan: None where one draw is all there is."""
        return None if math.isnan(self.standard_error) else round(self.standard_error, digits)


def per_token(nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> Bound:
    """Nats per token, of the nats [S, R] of S sequences in R rounds and their `tokens` [S].

    Sequences are the independent units: the standard error is that of a ratio of two sums over them (Cochran, Sampling
    Techniques, section 6.3). It holds the noise of the estimate and that of the choice of sequences. Of one sequence
    it is that over the rounds.
    """
    total, means = int(tokens.sum()), nats.mean(1)
    ratio = float(means.sum() / total)
    if len(means) == 1:
        return Bound(ratio, over_rounds(nats[0]) / total, total)
    spread = float(((means - ratio * tokens) ** 2).sum())
    return Bound(ratio, math.sqrt(spread * len(means) / (len(means) - 1)) / total, total)


def over_rounds(nats: NDArray[np.float64]) -> float:
    """Standard error of the mean of [R] draws; nan for one. Draws that are stratified are better than it says."""
    return float(nats.std(ddof=1) / math.sqrt(len(nats))) if len(nats) > 1 else math.nan
