"""Which kernel and tiles a shape gets, on a card with 132 multiprocessors."""

import pytest
import torch

pytest.importorskip("triton")

from qwen3llada.sampling.cuda.attention_tiles import Tiles, attention_tiles
from qwen3llada.sampling.cuda.layer_kernels import Heads

FEW = {"warps": 8, "few": True}
# (units, queries, columns of the prefix, head size) -> tiles
EXPECTED = {
    (1, 4, 384, 128): Tiles(16, 128, stages=4, **FEW),
    (1, 32, 384, 128): Tiles(16, 128, stages=4, **FEW),
    (8, 32, 384, 128): Tiles(32, 128, stages=4, **FEW),
    (8, 64, 384, 128): Tiles(64, 128, stages=2, **FEW),
    (64, 32, 384, 128): Tiles(64, 64),  # more programs than multiprocessors
    (1, 32, 384, 256): Tiles(32, 64),
    (8, 32, 3840, 128): Tiles(64, 64, stages=3, splits=4),
    (1, 32, 3840, 128): Tiles(64, 64, stages=3, splits=15),
    (8, 4096, 0, 128): Tiles(128, 128, warps=8),
}


@pytest.mark.parametrize(("shape", "tiles"), EXPECTED.items(), ids=str)
def test_tiles_of_a_shape(shape, tiles):
    units, queries, columns, size = shape
    like = torch.empty(0, dtype=torch.bfloat16)
    assert attention_tiles(2 * queries, Heads(16, 8, size), units, columns, like) == tiles


def test_many_queries_with_one_head_each_are_not_few_rows():
    like = torch.empty(0, dtype=torch.bfloat16)
    assert not attention_tiles(128, Heads(8, 8, 128), 1, 384, like).few
    assert attention_tiles(64, Heads(8, 8, 128), 1, 384, like).few


def test_float32_gets_tiles_that_fit_into_registers():
    like = torch.empty(0)
    assert attention_tiles(64, Heads(16, 8, 128), 1, 384, like) == Tiles(16, 64, stages=4, **FEW)
    assert attention_tiles(64, Heads(16, 8, 128), 8, 384, like) == Tiles(32, 32)
