"""Assignment of a stream's shards to lanes, and of runs of positions to lanes.

A lane reads its shards one after another, over and over. So that no shard is repeated more often than others, lanes get
turns in proportion to their text, and shards too small for a lane of their own share one.
"""

import heapq
from collections.abc import Sequence
from math import gcd

import numpy as np

MAX_LANES = 64  # each holds a block of text as tokens, a few megabytes
SMALLEST = 16  # a lane has at least 1 / SMALLEST of the mean text per lane
TURNS = 256  # of a mean-sized lane per cycle: the smallest lane then gets 16, so its share is exact to 3 %


def deal(sizes: Sequence[int], least: int) -> list[list[int]]:
    """The shard numbers of each lane, in order. Shards of size 0 are in no lane.

    `sizes` [shards]: amount of text in each. Makes as many lanes as possible, at most `MAX_LANES`, that are about equal
    and have at least `least` text each. Returns [] if all sizes are 0.
    """
    filled = sorted((i for i, size in enumerate(sizes) if size > 0), key=lambda i: (-sizes[i], i))
    total = sum(sizes)
    for count in range(min(len(filled), MAX_LANES), 0, -1):
        lanes, smallest = _balanced(sizes, filled, count)
        if count == 1 or (smallest >= least and smallest * SMALLEST * count >= total):
            return lanes
    return []


def _balanced(sizes: Sequence[int], filled: Sequence[int], count: int) -> tuple[list[list[int]], int]:
    """`count` lanes, filled greedily (largest shard first, into the smallest lane), and the smallest lane's size."""
    lanes: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, lane) for lane in range(count)]
    for shard in filled:
        load, lane = heapq.heappop(loads)
        lanes[lane].append(shard)
        heapq.heappush(loads, (load + sizes[shard], lane))
    return [sorted(lane) for lane in lanes], min(loads)[0]


def turns(loads: Sequence[int]) -> np.ndarray:
    """The lanes of one cycle of turns, [turns] int64: in proportion to `loads` and evenly spread."""
    mean = sum(loads) / len(loads)
    counts = [max(1, round(TURNS * load / mean)) for load in loads]
    counts = [count // gcd(*counts) for count in counts]
    lanes = np.repeat(np.arange(len(counts)), counts)
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return lanes[np.lexsort((lanes, places))]


def ranks(lanes: np.ndarray) -> np.ndarray:
    """For each turn of a cycle, the number of earlier turns of the same lane; [turns] int64."""
    seen: dict[int, int] = {}
    found = []
    for lane in lanes.tolist():
        found.append(seen.get(lane, 0))
        seen[lane] = found[-1] + 1
    return np.array(found, np.int64)
