"""Noise schedules: the probability p that a token is masked at noise level t.

Every schedule increases from p(0) = 0 to p(1) = 1. To add one, write a function and enter it in `SCHEDULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def uniform(t: Tensor) -> Tensor:
    """p = t: the masked fraction is uniform (LLaDA, arXiv 2502.09992). `t` and the result: any shape, in [0, 1]."""
    return t.clone()


def cosine(t: Tensor) -> Tensor:
    """p = sin(pi t / 2): dLLM-RL's cos(pi t' / 2) read at t' = 1 - t. `t` and the result: any shape, in [0, 1]."""
    return (t * (math.pi / 2)).sin()


def power(t: Tensor, *, power: float = 2.0) -> Tensor:
    """p = 1 - (1 - t)^power (dLLM-RL). `t` and the result: any shape, in [0, 1]; `power` > 0, 1 is `uniform`."""
    return 1 - (1 - t) ** power


def sigmoid(t: Tensor, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    """p = (g(1) - g(t')) / (g(1) - g(0)) with g(t') = sigmoid((t' (end - start) + start) / tau), t' = 1 - t (dLLM-RL).

    `t` and the result: any shape, in [0, 1]. `tau` > 0 sets the steepness, `start` < end the part of the curve used.
    """
    g_one, g_zero = (1 / (1 + math.exp(-x / tau)) for x in (end, start))
    g = ((end - t * (end - start)) / tau).sigmoid()  # (1 - t) (end - start) + start, multiplied out
    return (g_one - g) / (g_one - g_zero)


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "cosine": cosine,
    "power": power,
    "sigmoid": sigmoid,
}
