"""The order in which the tokens of an answer were committed, as groups of steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def step_groups(steps: NDArray[np.int64], blocks: NDArray[np.int64] | None, shrink: int = 1) -> NDArray[np.int64]:
    """Number of the group, from 0, in which each token is predicted, [n].

    Args:
        steps: [n], forward pass that committed each token, in any numbering that rises.
        blocks: [n], block of each token, where blocks take their steps side by side; None: in turn.
        shrink: neighbouring steps in a group.
    """
    blocks = np.zeros_like(steps) if blocks is None else blocks
    found = np.empty(len(steps), np.int64)
    for block in np.unique(blocks):
        inside = blocks == block
        found[inside] = np.unique(steps[inside], return_inverse=True)[1] // shrink
    return found
