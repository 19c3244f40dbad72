"""Norm, rotary embedding and attention in one kernel, against plain torch: in Triton's interpreter, and on a GPU."""

import pytest
import torch

pytest.importorskip("triton")


def compare(
    device, ranges, queries, counts, *, prefix=40, blocks=None, group=2, size=16, dtype=torch.float32, tiles=None,
    stored_first=False,
):  # fmt: skip
    """Unit u stores its first counts[u] tokens behind the `prefix` columns of its row; with no counts none stores."""
    from qwen3llada.sampling.cuda.attention_ranges import Blocks, Range
    from qwen3llada.sampling.cuda.attention_tiles import Tiles
    from qwen3llada.sampling.cuda.layer_kernels import Angles, Heads, Rotary, Store
    from qwen3llada.sampling.cuda.rotated_attention import rotated_attention
    from tests.sampling.cuda import plain_kernels
    from tests.sampling.cuda.test_attention_kernel import plain

    heads, units, generator = Heads(2 * group, 2, size), len(ranges), torch.Generator().manual_seed(queries)
    qkv = torch.randn(units * queries, (4 + 2 * group) * size, generator=generator).to(dtype)
    norms = (torch.rand(2, size, generator=generator) + 0.5).to(dtype)
    positions = torch.randint(50, (units * queries,), generator=generator, dtype=torch.int32)
    angle = torch.rand(50, size // 2, generator=generator) * 6
    table = torch.tensor(ranges, dtype=torch.int32).T.contiguous()
    blocks, columns = Blocks(*blocks) if blocks else None, prefix + max(counts, default=0)
    memory = [torch.randn(units + 1, columns, 2, size, generator=generator).to(dtype) for _ in range(2)]
    firsts = table[Range.OWNER].long() * columns + prefix

    def run(of, where):
        """The result and the memory behind it."""
        stored = [x.to(where, copy=True) for x in memory]
        store = Store(*stored, firsts.to(where), torch.tensor(counts).to(where)) if counts else None
        angles = Angles(angle.cos().to(where), angle.sin().to(where))
        rotary = Rotary(*norms.to(where), positions.to(where), angles, 1e-6)
        return [x.cpu().double() for x in (of(qkv.to(where), rotary, stored, table.to(where), store), *stored)]

    def ours(qkv, rotary, prefix, table, store):
        chosen = Tiles(*tiles, few=True) if tiles else None
        given = {"stored_first": stored_first, "tiles": chosen}
        return rotated_attention(qkv, rotary, prefix, table, heads, blocks, store, **given)

    def theirs(qkv, rotary, prefix, table, store):
        return plain(plain_kernels.norm_rope(qkv, *rotary, heads, store), qkv, prefix, table, heads, blocks)

    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for found, expected in zip(run(ours, device), run(theirs, "cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


FEW = (16, 32)


def compare_units(device):
    """Units store all, some and none of their tokens; tokens are also stored that nobody sees."""
    rows = [(0, 5, 2, 3, 40, 0, 0), (1, 4, 0, 0, 0, 0, 0), (0, 0, 1, 17, 20, 0, 0), (0, 5, 3, 0, 39, 2, 30)]
    compare(device, rows, 5, [5, 0, 3, 1], tiles=FEW)
    compare(device, rows[:2], 5, [], size=80, group=1, tiles=FEW)


def compare_blocks(device):
    """The finished block is stored; several tiles of queries share it."""
    compare(device, [(0, 9, 1, 3, 40, 0, 0), (0, 8, 0, 40, 40, 0, 0)], 9, [5, 5], blocks=(5, 3, 0), group=4, tiles=FEW)
    compare(device, [(0, 21, 0, 33, 40, 0, 0)], 21, [21], size=64, group=1, tiles=FEW)


def compare_reading_what_is_stored(device):
    """Where a unit reads what a later one stores, all store before any attends."""
    rows = [(0, 3, 1, 38, 42, 0, 0), (0, 3, 1, 0, 40, 0, 0)]
    compare(device, rows, 3, [0, 3], stored_first=True)


def compare_chosen_tiles(device):
    """Qwen3's sizes on the card: a block alone, two of them, and more queries than the kernel takes."""
    for dtype in (torch.float32, torch.bfloat16):
        for units, queries in ((1, 4), (1, 32), (8, 32), (16, 32), (40, 32), (1, 300)):
            rows = [(0, queries, unit, 3, 300 - 5 * unit, 0, 0) for unit in range(units)]
            compare(device, rows, queries, [], prefix=384, size=128, dtype=dtype)
        for units in (1, 8):
            rows = [(0, 64, unit, 128, 300 + unit, 0, 0) for unit in range(units)]
            compare(device, rows, 64, [32] * units, prefix=384, blocks=(32, 4, 0), size=128, dtype=dtype)


CHECKS = [compare_units, compare_blocks, compare_reading_what_is_stored]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("check", [*CHECKS, compare_chosen_tiles])
def test_rotated_attention_on_a_gpu(check):
    check("cuda")
