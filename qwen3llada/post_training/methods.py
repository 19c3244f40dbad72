"""How the log-probability of an answer is estimated: which of its tokens each forward pass masks and predicts.

A masked diffusion model has no cheap log-probability of a whole answer. Each method replaces it by log-probabilities of
single tokens, given what is visible in some pass. To add a method, write a function and enter it in `METHODS`.
Shapes: n decoded positions of an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the parameters need only the names of the methods, not numpy
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The order in which the tokens of an answer were committed."""

    steps: NDArray[np.int64]  # [n], forward pass that committed each token, from 1, without gaps
    blocks: NDArray[np.int64] | None  # [n], block of each token, where blocks are trained side by side; None: in turn
    key: int  # of the random masks


@dataclass(frozen=True, kw_only=True)
class PassKnobs:
    """Knobs of the methods."""

    masks: int = 1  # random masks of an answer
    shrink: int = 1  # neighbouring steps that are trained as one
    seed: int = 0


class Pass(NamedTuple):
    """A forward pass over an answer. What is neither masked nor predicted is visible."""

    masked: NDArray[np.bool_]  # [n]
    predicted: NDArray[np.bool_]  # [n], a part of the masked ones


@dataclass(frozen=True, kw_only=True)
class Method:
    """`passes(trajectory, knobs)`: the passes of one answer.

    ordered: whether the passes follow the order in which the tokens were committed.
    keeps_best: learn the best answers of each group by cross-entropy, in place of all by a policy gradient.
    """

    passes: Callable[[Trajectory, PassKnobs], list[Pass]]
    ordered: bool = False
    keeps_best: bool = False


def random_mask(trajectory: Trajectory, knobs: PassKnobs) -> list[Pass]:
    """Random masks of the answer; each masked token is predicted.

    diffu-GRPO (arXiv 2504.12216), UniGRPO (arXiv 2505.15809). The share that is masked is uniform, stratified over the
    answer's masks; at least one token is masked. The masks depend on the rollout alone, so that every update of the
    same rollouts, and the reference, see the same ones.
    """
    return [Pass(mask, mask) for mask in _masks(trajectory, knobs)]


def coupled(trajectory: Trajectory, knobs: PassKnobs) -> list[Pass]:
    """Each random mask and its complement, so that each token is predicted exactly once by a pair.

    Coupled-GRPO (arXiv 2506.20639), an antithetic estimate. A complement without a token is left out.
    """
    pairs = [(mask, ~mask) for mask in _masks(trajectory, knobs)]
    return [Pass(mask, mask) for pair in pairs for mask in pair if mask.any()]


def trace(trajectory: Trajectory, knobs: PassKnobs) -> list[Pass]:
    """The order of the rollout: tokens of `shrink` neighbouring steps are predicted with all later ones masked.

    TraceRL (arXiv 2509.06949). With shrink 1 the product of the probabilities is that of the rollout's tokens, given
    its order. Where blocks are trained side by side, the passes of all blocks are the same ones.
    """
    import numpy as np

    from qwen3llada.diffusion.trajectory import step_groups

    groups = step_groups(trajectory.steps, trajectory.blocks, knobs.shrink)
    return [Pass(groups >= number, groups == number) for number in np.unique(groups)]


METHODS: dict[str, Method] = {
    "random_mask": Method(passes=random_mask),
    "coupled": Method(passes=coupled),
    "trace": Method(passes=trace, ordered=True),
    "best_of": Method(passes=random_mask, keeps_best=True),
}


def _masks(trajectory: Trajectory, knobs: PassKnobs) -> list[NDArray[np.bool_]]:
    """`knobs.masks` random masks, keyed by (seed, rollout, number of the mask)."""
    import numpy as np

    from qwen3llada.diffusion.keyed_random import WORD_BITS, Purpose, philox_words, unit_interval

    count, masks = len(trajectory.steps), []
    for number in range(knobs.masks):
        counter = (0, Purpose.ROLLOUT_MASK, trajectory.key % (1 << WORD_BITS))
        level, *uniforms = unit_interval(philox_words(knobs.seed, number, counter, 1 + count))
        mask = np.array(uniforms) < (number + level) / knobs.masks
        if count and not mask.any():
            mask[int(np.argmin(uniforms))] = True
        masks.append(mask)
    return masks
