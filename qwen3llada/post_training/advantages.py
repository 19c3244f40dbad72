"""Advantages of rollouts within their group."""

import numpy as np
from numpy.typing import NDArray

from qwen3llada.post_training.params import Normalization


def group_advantages(rewards: NDArray[np.float64], normalization: Normalization) -> NDArray[np.float64]:
    """Reward minus the mean of its group, [groups, G] -> [groups, G]; 0 in a group of equal rewards.

    std: divided by the group's standard deviation (GRPO, arXiv 2402.03300), with the divisor G. none: not divided,
    which weighs easy and hard prompts alike (Dr. GRPO, arXiv 2503.20783).
    """
    centred = rewards - rewards.mean(1, keepdims=True)
    centred[(rewards == rewards[:, :1]).all(1)] = 0.0  # a mean of equal numbers may differ from them in the last bit
    if normalization == "none":
        return centred
    spread = rewards.std(1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=(spread > 0) & (centred != 0))


def best_of_group(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for the best rollouts of each group, 0 for all others, [groups, G]; 0 in a group of equal rewards.

    Rejection sampling, as in RAFT (arXiv 2304.06767). Ties are all kept. A group of equal rewards has no best one.
    """
    best = rewards.max(1, keepdims=True)
    return ((rewards == best) & (rewards.min(1, keepdims=True) < best)).astype(np.float64)
