"""Random numbers looked up by key instead of drawn from a stream.

Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) turns a key and a counter into random
words. The key is (seed, epoch); the counter holds the sample's index. A sample's draws therefore depend on nothing
else: not on its batch, its rank or worker, or earlier draws.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 64
BLOCK_WORDS = 4  # words that Philox4x64 generates per counter value
DOUBLE_BITS = 53  # bits of a float64 in [0, 1), taken from the top of a word
# floor(2^64 / golden ratio): its multiples modulo 2^64 are spread evenly.
GOLDEN_STEP = (math.isqrt(5 << (2 * WORD_BITS)) - (1 << WORD_BITS)) // 2


class Purpose(IntEnum):
    """Purpose of a draw. Each has its own part of the counter space, so no two draws share words."""

    EPOCH_ORDER = 0
    LEVEL_START = 1
    SAMPLE = 2
    MASK = 3
    REPLACEMENT = 4
    REPLACED = 5
    BLOCK_ORDER = 6
    BLOCK_SPAN = 7
    MASK_COUNT = 8
    MASK_RANK = 9
    ROLLOUT_MASK = 10
    ANSWER_PART = 11


def philox_words(seed: int, epoch: int, counter: tuple[int, int, int], count: int) -> NDArray[np.uint64]:
    """`count` random words from the sequence named by `counter` = (first block, purpose, index).

    Raises ValueError if a part of the key is negative or exceeds 64 bits.
    """
    for name, value in {"seed": seed, "epoch": epoch, "index": counter[2]}.items():
        if not 0 <= value < 1 << WORD_BITS:
            raise ValueError(f"{name}={value} must be in [0, 2^{WORD_BITS})")
    generator = np.random.Philox(
        key=np.array([seed, epoch], dtype=np.uint64), counter=np.array([*counter, 0], dtype=np.uint64)
    )
    return generator.random_raw(count)


def unit_interval(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random words as float64, uniform in [0, 1)."""
    return (words >> np.uint64(WORD_BITS - DOUBLE_BITS)).astype(np.float64) * 2.0**-DOUBLE_BITS


def sample_uniforms(indices: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.float64]:
    """Four uniforms in [0, 1) per sample, [B] -> [B, 4]: block number `index` of the sequence SAMPLE."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1) if len(indices) else []
    words = [
        philox_words(seed, epoch, (int(run[0]), Purpose.SAMPLE, 0), len(run) * BLOCK_WORDS) for run in runs
    ]  # consecutive samples have consecutive blocks: one call per run
    return unit_interval(np.concatenate([np.empty(0, np.uint64), *words])).reshape(-1, BLOCK_WORDS)


def position_uniforms(
    indices: NDArray[np.int64], length: int, purpose: Purpose, *, seed: int, epoch: int
) -> NDArray[np.float64]:
    """A uniform in [0, 1) per position of each sample, [B] -> [B, length]. Longer rows start like shorter ones."""
    words = np.empty((len(indices), length), dtype=np.uint64)
    for row, index in zip(words, indices.tolist(), strict=True):
        row[:] = philox_words(seed, epoch, (0, purpose, index), length)
    return unit_interval(words)


def golden_ratio_levels(indices: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.float64]:
    """Noise levels in [0, 1), [B] -> [B]: steps of 1/golden ratio along the epoch's order, from a keyed start.

    Any n consecutive samples cover [0, 1) with gaps of order 1/n (three-distance theorem); independent draws leave gaps
    of order log(n)/n. Integer arithmetic modulo 2^64 is exact for any index.
    """
    start = philox_words(seed, epoch, (0, Purpose.LEVEL_START, 0), 1)
    return unit_interval(start + indices.astype(np.uint64) * np.uint64(GOLDEN_STEP))


def spread_over_blocks(level: float, blocks: int, index: int, *, seed: int, epoch: int) -> NDArray[np.float64]:
    """Noise levels in [0, 1), [blocks], for the blocks of the sample at `index`, from the sample's own `level`.

    Each of `blocks` equal parts of [0, 1) gets one level, at relative place `level` within the part, in a keyed random
    order. So the levels within a sample are stratified, those of samples together are as even as `golden_ratio_levels`,
    and each block's level is uniform.
    """
    order = np.argsort(philox_words(seed, epoch, (0, Purpose.BLOCK_ORDER, index), blocks), kind="stable")
    part = np.empty(blocks, np.int64)
    part[order] = np.arange(blocks)
    return np.minimum((part + level) / blocks, 1 - 2.0**-DOUBLE_BITS)
