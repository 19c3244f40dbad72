"""Tile sizes of the attention kernel, and over how many programs a prefix is split.

`python -m bench.sample --only tiles` compares them with others.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

LEAST_COLUMNS = 256  # of a prefix in a split: less does not pay for joining
MOST_SPLITS = 32
LONG_QUERIES = 512  # a unit with more queries than this (times query heads per key head) fills whole large tiles


class Tiles(NamedTuple):
    """Queries and keys of a tile, compile options, and how a prefix is split."""

    rows: int
    columns: int
    warps: int = 4
    stages: int = 2
    splits: int = 1
    least: int = LEAST_COLUMNS


def attention_tiles(rows: int, heads: int, prefix: int, like: Tensor) -> Tiles:
    """Tiles for `heads` (units times key/value heads) of `rows` queries each, and a prefix of so many columns."""
    fitting = max(16, triton.next_power_of_2(rows))
    multiprocessors = torch.cuda.get_device_properties(like.device).multi_processor_count if like.is_cuda else 1
    full = like.dtype == torch.float32  # float32 needs twice the shared memory
    if rows > LONG_QUERIES and not full:
        return Tiles(128, 128, warps=8)
    height = min(32 if full else 64, fitting)
    programs = triton.cdiv(rows, height) * heads
    splits = min(2 * multiprocessors // programs, prefix // LEAST_COLUMNS, MOST_SPLITS)
    if splits > 1:
        return Tiles(height, 32, splits=splits) if full else Tiles(height, 64, stages=3, splits=splits)
    few = programs < 2 * multiprocessors
    return Tiles(height, 32) if full else Tiles(min(32 if few else 64, fitting), 64)
