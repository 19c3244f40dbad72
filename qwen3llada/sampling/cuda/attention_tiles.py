"""Tile sizes of the attention kernels, and over how many programs a prefix is split.

`python -m bench.sample --only tiles` compares them with others.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from qwen3llada.sampling.cuda.layer_kernels import Heads

LEAST_COLUMNS = 256  # of a prefix in a split: less does not pay for joining
MOST_SPLITS = 32
LONG_QUERIES = 512  # a unit with more queries than this (times query heads per key head) fills whole large tiles
FEW_ROWS = 128  # most queries of a unit, times query heads per key head, of the kernel for few rows
FEW_QUERIES = 64  # and most queries: their own keys are one tile
FEW_COLUMNS = 1024  # of a prefix: more are better split over programs
FEW_SIZE = 128  # of a head: larger ones need too many registers
TILE_BYTES = 2**15  # keys of a tile of the kernel for few rows
OTHER_BYTES = 2**15  # shared memory of that kernel besides keys and values; twice that for 64 rows


class Tiles(NamedTuple):
    """Queries and keys of a tile, compile options, and how a prefix is split.

    few: for `attention_few_rows.py`, which splits nothing.
    """

    rows: int
    columns: int
    warps: int = 4
    stages: int = 2
    splits: int = 1
    least: int = LEAST_COLUMNS
    few: bool = False


def attention_tiles(rows: int, heads: Heads, units: int, prefix: int, like: Tensor) -> Tiles:
    """Tiles for `units` of `rows` queries (times query heads per key head), and a prefix of so many columns."""
    fitting, count = max(16, triton.next_power_of_2(rows)), units * heads.keys
    multiprocessors, shared = _device(like)
    full = like.dtype == torch.float32  # needs twice the shared memory
    queries = rows * heads.keys // heads.queries
    if rows > LONG_QUERIES and not full:
        return Tiles(128, 128, warps=8)
    few = rows <= (FEW_ROWS // 2 if full else FEW_ROWS) and queries <= FEW_QUERIES
    if few and prefix <= FEW_COLUMNS and heads.size <= FEW_SIZE:
        for height in (16,) if full else (16, 32, 64):  # the lowest tiles whose programs all run at once, one on each
            if triton.cdiv(rows, height) * count <= multiprocessors:
                return _few_rows(height, heads, shared, like)
    height = min(32 if full else 64, fitting)
    programs = triton.cdiv(rows, height) * count
    splits = min(2 * multiprocessors // programs, prefix // LEAST_COLUMNS, MOST_SPLITS)
    if splits > 1:
        return Tiles(height, 32, splits=splits) if full else Tiles(height, 64, stages=3, splits=splits)
    low = programs < 2 * multiprocessors
    return Tiles(height, 32) if full else Tiles(min(32 if low else 64, fitting), 64)


def _device(like: Tensor) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory of a program; in Triton's interpreter those of an H100."""
    if not like.is_cuda:
        return 132, 232_448
    device = torch.cuda.get_device_properties(like.device)
    return device.multi_processor_count, device.shared_memory_per_block_optin


def _few_rows(height: int, heads: Heads, shared: int, like: Tensor) -> Tiles:
    """Tiles of the kernel for few rows: as many tiles of keys and values on their way as `shared` bytes can hold."""
    of_key = triton.next_power_of_2(heads.size) * like.element_size()
    columns, high = min(128, TILE_BYTES // of_key), height == 64
    held = (shared - (2 if high else 1) * OTHER_BYTES) // (2 * columns * of_key)
    # The product of 64 rows reads its tile from shared memory, so that buffer is not free for the next load meanwhile.
    stages = held if high else held + 1
    return Tiles(height, columns, warps=8, stages=max(1, min(stages, 4)), few=True)
