"""Tile sizes of the sampler's attention kernel, compared on this card."""

import functools
from collections.abc import Callable, Iterator

import torch

from qwen3llada.sampling.cuda.attention_kernel import attention
from qwen3llada.sampling.cuda.attention_ranges import Blocks, Range
from qwen3llada.sampling.cuda.attention_tiles import Tiles
from qwen3llada.sampling.cuda.layer_kernels import Heads

HEADS = Heads(16, 8, 128)  # Qwen3-0.6B's
# name -> (units, queries, columns of the prefix), and tiles
SHAPES = {
    "8 × 32 after 3,840": ((8, 32, 3840), [(64, 64, 4, s, n) for s in (2, 3) for n in (2, 4, 8)]),
    "8 × 32 after 3,840, wide": ((8, 32, 3840), [(64, 128, 4, 2, 4), (64, 128, 8, 2, 4), (64, 32, 4, 4, 4)]),
    "1 × 32 after 3,840": ((1, 32, 3840), [(64, 64, 4, 3, n) for n in (8, 15)]),
    "8 × 32 after 384": ((8, 32, 384), [(64, 64, 4, 2, 1), (64, 64, 4, 3, 1), (32, 64, 4, 2, 1), (16, 64, 4, 2, 1)]),
    "1 × 32 after 384": ((1, 32, 384), [(32, 64, 4, 2, 1), (16, 64, 4, 2, 1), (16, 64, 4, 2, 2), (16, 128, 4, 2, 1)]),
    "64 × 32 after 384": ((64, 32, 384), [(64, 64, 4, 2, 1), (64, 64, 4, 3, 1), (32, 64, 4, 2, 1), (64, 128, 4, 2, 1)]),
    "8 × 4,096": (
        (8, 4096, 0),
        [
            *((128, 128, 8, 2, 1), (128, 64, 8, 2, 1), (128, 64, 8, 3, 1), (128, 64, 4, 3, 1)),
            *((64, 64, 4, 2, 1), (64, 128, 8, 2, 1), (64, 128, 4, 2, 1)),
        ],
    ),
}
CALLS = 20  # in one graph


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
    """A line for each shape and tile."""
    for name, ((units, queries, columns), candidates) in SHAPES.items():
        qkv = torch.randn(units * queries, 32 * 128, device="cuda", dtype=torch.bfloat16)
        qk = qkv[:, : 24 * 128].contiguous()
        prefix, blocks = None, None if columns else Blocks(32, queries, 0)
        ranges = torch.zeros(len(Range), units, dtype=torch.int32, device="cuda")
        ranges[Range.OWN_HIGH] = queries
        if columns:
            shape = units, columns, HEADS.keys, HEADS.size
            prefix = torch.randn(shape, device="cuda").bfloat16(), torch.randn(shape, device="cuda").bfloat16()
            ranges[Range.OWNER] = torch.arange(units)
            ranges[Range.HIGH] = columns
        for rows, keys, warps, stages, splits in candidates:
            tiles = Tiles(rows, keys, warps=warps, stages=stages, splits=splits)
            try:
                call = functools.partial(attention, qk, qkv, prefix, ranges, HEADS, blocks, tiles)
                yield f"  {name:26} {tiles}  {microseconds(call):9.1f} us"
            except Exception as error:
                if "CUDA error" in str(error):
                    raise
                yield f"  {name:26} {tiles}  {type(error).__name__}: {str(error)[:80]}"
