"""Tile sizes of the sampler's attention kernels, compared on this card."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from qwen3llada.sampling.cuda.attention_kernel import attention
from qwen3llada.sampling.cuda.attention_ranges import Blocks, Range
from qwen3llada.sampling.cuda.attention_tiles import Tiles, attention_tiles
from qwen3llada.sampling.cuda.layer_kernels import Angles, Heads, Rotary
from qwen3llada.sampling.cuda.rotated_attention import rotated_attention

HEADS = Heads(16, 8, 128)  # Qwen3-0.6B's
CALLS = 20  # in one graph


class Shape(NamedTuple):
    """Units of queries, a whole prompt or one or two blocks, after a prefix of so many columns."""

    units: int
    queries: int
    prefix: int
    blocks: int = 0  # length of a block, if there are several

    def __str__(self) -> str:
        return f"{self.units} × {self.queries:,} after {self.prefix:,}" + (" in blocks" if self.blocks else "")


def few(*candidates: tuple[int, int, int, int]) -> list[Tiles]:
    """Tiles of the kernel for few rows, of (rows, columns, warps, stages)."""
    return [Tiles(*sizes, few=True) for sizes in candidates]


LOW = few((16, 128, 8, 2), (16, 128, 8, 3), (16, 128, 8, 4), (16, 128, 4, 4), (16, 256, 8, 2), (16, 64, 4, 4))
LOW += few((16, 64, 8, 4))
MIDDLE = few((32, 128, 8, 2), (32, 128, 8, 4), (32, 128, 4, 3), (32, 256, 8, 2), (32, 64, 4, 4), (32, 64, 8, 4))
HIGH = few((64, 128, 8, 2), (64, 128, 8, 3), (64, 128, 4, 2), (64, 64, 4, 3), (64, 64, 8, 3))
CANDIDATES = {
    Shape(1, 4, 384): [Tiles(16, 64), *LOW],
    Shape(1, 32, 384): [Tiles(32, 64), Tiles(16, 64), Tiles(16, 64, splits=2), Tiles(16, 128), *LOW, *MIDDLE],
    Shape(1, 64, 384, 32): [Tiles(32, 64), Tiles(64, 64), *LOW, *MIDDLE],
    Shape(1, 32, 1024): [Tiles(64, 64, stages=3, splits=4), *LOW, *MIDDLE],
    Shape(8, 32, 384): [Tiles(32, 64), Tiles(64, 64), Tiles(64, 64, stages=3), Tiles(16, 64), *LOW, *MIDDLE, *HIGH],
    Shape(8, 64, 384, 32): [Tiles(32, 64), Tiles(64, 64), *LOW, *MIDDLE, *HIGH],
    Shape(16, 32, 384): [Tiles(32, 64), Tiles(64, 64), *LOW, *MIDDLE, *HIGH],
    Shape(64, 32, 384): [Tiles(64, 64), Tiles(64, 64, stages=3), Tiles(32, 64), Tiles(64, 128), *HIGH],
    Shape(128, 4, 384): [Tiles(16, 64), *LOW],
    Shape(8, 32, 3840): [
        *(Tiles(64, 64, stages=stages, splits=splits) for stages in (2, 3) for splits in (2, 4, 8)),
        *(Tiles(64, 128, splits=4), Tiles(64, 128, warps=8, splits=4), Tiles(64, 32, stages=4, splits=4)),
    ],
    Shape(1, 32, 3840): [Tiles(64, 64, stages=3, splits=splits) for splits in (8, 15)],
    Shape(8, 4096, 0, 32): [
        *(Tiles(128, 128, warps=8), Tiles(128, 64, warps=8), Tiles(128, 64, warps=8, stages=3)),
        *(Tiles(128, 64, stages=3), Tiles(64, 64), Tiles(64, 128, warps=8), Tiles(64, 128)),
    ],
}


def microseconds(call: Callable[[], object]) -> float:
    """Of one call in a CUDA graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    times = []
    for _ in range(4):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times) / CALLS * 1e3


def compare_tiles() -> Iterator[str]:
    """A line for each shape and tile: attention, and norm and rotary embedding with it. The first is the chosen one."""
    for shape, candidates in CANDIDATES.items():
        units, queries, columns, length = shape
        qkv = torch.randn(units * queries, 32 * 128, device="cuda", dtype=torch.bfloat16)
        qk = qkv[:, : 24 * 128].contiguous()
        norms = torch.ones(2, 128, device="cuda", dtype=torch.bfloat16)
        angles = Angles(*torch.ones(2, columns + queries, 64, device="cuda"))
        positions = torch.arange(columns, columns + queries, device="cuda", dtype=torch.int32).repeat(units)
        rotary = Rotary(*norms, positions, angles, 1e-6)
        prefix, blocks = None, Blocks(length, queries, 0) if length else None
        ranges = torch.zeros(len(Range), units, dtype=torch.int32, device="cuda")
        ranges[Range.OWN_HIGH] = queries
        if columns:
            stored = units, columns, HEADS.keys, HEADS.size
            prefix = torch.randn(stored, device="cuda").bfloat16(), torch.randn(stored, device="cuda").bfloat16()
            ranges[Range.OWNER] = torch.arange(units)
            ranges[Range.HIGH] = columns
        chosen = attention_tiles(queries * HEADS.queries // HEADS.keys, HEADS, units, columns, qk)
        for tiles in dict.fromkeys([chosen, *candidates]):
            try:
                alone = functools.partial(attention, qk, qkv, prefix, ranges, HEADS, blocks, tiles)
                both = functools.partial(rotated_attention, qkv, rotary, prefix, ranges, HEADS, blocks, tiles=tiles)
                yield f"  {shape!s:28} {tiles}  {microseconds(alone):9.1f} us {microseconds(both):9.1f} us"
            except Exception as error:
                if "CUDA error" in str(error):
                    raise
                yield f"  {shape!s:28} {tiles}  {type(error).__name__}: {str(error)[:80]}"
