"""How the shards of a stream are dealt out to lanes, and which lane each run of positions comes from.

A lane reads its shards one after the other, again and again. So that no shard is repeated more often than the others,
lanes get turns in proportion to their text, and a shard that is too small for a lane of its own shares one.
"""

import heapq
from collections.abc import Sequence
from math import gcd

import numpy as np

MAX_LANES = 64  # each holds a block of text as tokens, a few megabytes
SMALLEST = 16  # a lane has at least this fraction (1 / SMALLEST) of the mean text of a lane
TURNS = 256  # of a lane of mean size in a cycle: the smallest is then drawn 16 times, so its share is right to 3 %


def deal(sizes: Sequence[int], least: int) -> list[list[int]]:
    """Numbers of the shards of each lane, in order; shards of size 0 are in none.

    `sizes` [shards]: how much text each has. There are as many lanes as possible, `MAX_LANES` at most, that are about
    equal and have at least `least` each. Returns [] if all sizes are 0.
    """
    filled = sorted((i for i, size in enumerate(sizes) if size > 0), key=lambda i: (-sizes[i], i))
    total = sum(sizes)
    for count in range(min(len(filled), MAX_LANES), 0, -1):
        lanes, smallest = _balanced(sizes, filled, count)
        if count == 1 or (smallest >= least and smallest * SMALLEST * count >= total):
            return lanes
    return []


def _balanced(sizes: Sequence[int], filled: Sequence[int], count: int) -> tuple[list[list[int]], int]:
    """`count` lanes, each shard put into the one that has least so far, large ones first; and the smallest size."""
    lanes: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, lane) for lane in range(count)]
    for shard in filled:
        load, lane = heapq.heappop(loads)
        lanes[lane].append(shard)
        heapq.heappush(loads, (load + sizes[shard], lane))
    return [sorted(lane) for lane in lanes], min(loads)[0]


def turns(loads: Sequence[int]) -> np.ndarray:
    """The lanes of a cycle of turns, [turns] int64: each lane in proportion to its load, and evenly spread."""
    mean = sum(loads) / len(loads)
    counts = [max(1, round(TURNS * load / mean)) for load in loads]
    counts = [count // gcd(*counts) for count in counts]
    lanes = np.repeat(np.arange(len(counts)), counts)
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return lanes[np.lexsort((lanes, places))]


def ranks(lanes: np.ndarray) -> np.ndarray:
    """For each turn of a cycle, how many turns its lane had before in the cycle; [turns] int64."""
    seen: dict[int, int] = {}
    found = []
    for lane in lanes.tolist():
        found.append(seen.get(lane, 0))
        seen[lane] = found[-1] + 1
    return np.array(found, np.int64)
