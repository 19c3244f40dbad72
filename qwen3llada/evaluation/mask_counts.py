"""Which positions of a sequence are masked in each round of a likelihood estimate: counts first, then positions.

A block of n positions has l of them masked, l uniform in 1..n, drawn without replacement, and each masked position's
cross-entropy has the weight n/l (LLaDA, arXiv 2502.09992, equation 6; BD3-LM, arXiv 2503.09573, block by block). A
sequence that is estimated as a whole is one block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3llada.diffusion.keyed_random import Purpose, philox_words, position_uniforms, unit_interval


@dataclass(frozen=True)
class MaskRounds:
    """The masks of R rounds over the n predicted positions of one sequence."""

    masked: NDArray[np.bool_]  # [R, n]
    counts: NDArray[np.int64]  # [R, n], l of each position's block
    sizes: NDArray[np.int64]  # [n], n of each position's block

    @property
    def shares(self) -> NDArray[np.float64]:
        """l/n of each position's block, [R, n]: its inverse is the weight of a masked position."""
        return self.counts / self.sizes

    @property
    def levels(self) -> NDArray[np.float64]:
        """The noise level that l masks stand for, the middle of ((l-1)/n, l/n]: [R, n]."""
        return (self.counts - 0.5) / self.sizes


def mask_rounds(blocks: NDArray[np.int64], rounds: int, *, seed: int, key: int) -> MaskRounds:
    """The masks of one sequence.

    What is drawn depends on (seed, key) and the blocks alone. Over the rounds the counts of a block are stratified: of
    `rounds` equal parts of 1..n each round gets one. So are those of the blocks within each part.

    Args:
        blocks: [n] rising numbers of the block that each predicted position belongs to.
        rounds: how many masks are drawn.
        seed, key: of all draws; `key` tells sequences apart.
    """
    _, starts, which, sizes = np.unique(blocks, return_index=True, return_inverse=True, return_counts=True)
    levels = _stratified_levels(len(sizes), rounds, seed=seed, key=key)  # [R, blocks]
    counts = np.minimum(1 + np.floor(levels * sizes).astype(np.int64), sizes)[:, which]
    uniforms = position_uniforms(np.array([key]), rounds * len(blocks), Purpose.MASK_RANK, seed=seed, epoch=0)
    # Sorted by block and then by uniform, the l first positions of a block are a sample without replacement.
    order = np.argsort(which + uniforms.reshape(rounds, len(blocks)), axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(blocks))[None], axis=1)
    return MaskRounds(rank - starts[which] < counts, counts, sizes[which])


def _stratified_levels(blocks: int, rounds: int, *, seed: int, key: int) -> NDArray[np.float64]:
    """Levels in [0, 1), [rounds, blocks], each uniform, all of them together on one grid with a random start."""
    words = philox_words(seed, 0, (0, Purpose.MASK_COUNT, key), 1 + blocks)
    place = np.empty(blocks, np.int64)
    place[np.argsort(words[1:], kind="stable")] = np.arange(blocks)
    grid = np.arange(rounds)[:, None] / rounds + place / (rounds * blocks)
    return (unit_interval(words[:1]) + grid) % 1.0
