"""The sampler's attention against plain torch: in Triton's interpreter, and on a GPU."""

import pytest
import torch

pytest.importorskip("triton")
SIZE = 16


def plain(qk, qkv, prefix, ranges, heads, blocks):
    """In float64, key by key."""
    units = ranges.shape[1]
    queries = len(qk) // units
    q, own = qk.double().unflatten(1, (-1, heads.size)).split([heads.queries, heads.keys], 1)
    v = qkv.double().unflatten(1, (-1, heads.size))[:, heads.queries + heads.keys :]
    out = torch.zeros(len(qk), heads.queries, heads.size, dtype=torch.float64)
    for unit in range(units):
        own_low, own_high, owner, low, high, skip_low, skip_high = ranges[:, unit].tolist()
        before = [n for n in range(low, high) if not skip_low <= n < skip_high] if prefix is not None else []
        mine = range(own_low, own_high)
        for query in range(queries):
            block = (query + blocks.shift) // blocks.length if blocks else 0

            def near(key, block=block):  # the key's place, counted from the unit's first token
                return not blocks or 0 <= block - (key + blocks.shift) // blocks.length <= blocks.window

            old, new = [n for n in before if near(n - high)], [unit * queries + n for n in mine if near(n)]
            keys, values = own[new], v[new]
            if prefix is not None:
                keys, values = (
                    torch.cat([part[owner, old].double(), x]) for part, x in zip(prefix, (keys, values), strict=True)
                )
            if not len(keys):
                continue
            for head in range(heads.queries):
                kv = head // (heads.queries // heads.keys)
                scores = keys[:, kv] @ q[unit * queries + query, head] / heads.size**0.5
                out[unit * queries + query, head] = scores.softmax(0) @ values[:, kv]
    return out.flatten(1)


def compare(device, ranges, queries, *, prefix=0, blocks=None, dtype=torch.float32, size=SIZE, group=2, **tiles):
    from qwen3llada.sampling.cuda.attention_kernel import attention
    from qwen3llada.sampling.cuda.attention_ranges import Blocks
    from qwen3llada.sampling.cuda.attention_tiles import Tiles
    from qwen3llada.sampling.cuda.layer_kernels import Heads

    heads, units = Heads(2 * group, 2, size), len(ranges)
    generator = torch.Generator().manual_seed(queries + prefix)
    qkv = torch.randn(units * queries, (4 + 2 * group) * size, generator=generator).to(dtype)
    qk = torch.randn(units * queries, (2 + 2 * group) * size, generator=generator).to(dtype)
    stored = None
    if prefix:
        stored = tuple(torch.randn(units + 1, prefix, 2, size, generator=generator).to(dtype) for _ in range(2))
        hidden = torch.ones(units + 1, prefix, dtype=torch.bool)
        for _, _, owner, low, high, *_ in ranges:
            hidden[owner, low:high] = False
        for part in stored:
            part[hidden] = torch.nan  # what nobody sees may hold anything
    table = torch.tensor(ranges, dtype=torch.int32).T.contiguous()
    blocks = Blocks(*blocks) if blocks else None
    there = stored and tuple(part.to(device) for part in stored)
    chosen = Tiles(**tiles) if tiles else None
    found = attention(qk.to(device), qkv.to(device), there, table.to(device), heads, blocks, chosen).cpu().double()
    assert found.isfinite().all()
    expected = plain(qk, qkv, stored, table, heads, blocks)
    query, real = torch.arange(queries), torch.ones(len(qk), dtype=torch.bool)
    if blocks:  # a query before its unit's first own key is padding
        real = torch.cat([(query >= low) & (query < high) for low, high, *_ in ranges])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found[real], expected[real], rtol=tolerance, atol=tolerance)


SMALL = {"rows": 16, "columns": 16}


def compare_prefix_and_own(device):
    """Ranges of a prefix and of a unit's own keys, with a hidden range, whole tiles and edges."""
    compare(device, [(0, 5, 1, 3, 40, 0, 0), (0, 4, 0, 17, 20, 0, 0)], 5, prefix=50, **SMALL)
    compare(device, [(0, 5, 0, 0, 64, 20, 25), (0, 5, 1, 0, 16, 0, 0)], 5, prefix=64, **SMALL)
    compare(device, [(2, 40, 0, 0, 0, 0, 0), (0, 33, 1, 0, 0, 0, 0)], 40, **SMALL)


def compare_splits(device):
    """A long prefix over several programs; rows of other lengths have fewer of them, down to none."""
    rows = [(0, 3, 2, 5, 150, 0, 0), (0, 3, 0, 60, 61, 0, 0), (0, 2, 1, 33, 33, 0, 0)]
    compare(device, rows, 3, prefix=160, **SMALL, splits=6, least=16)
    compare(device, [(0, 3, 0, 0, 160, 40, 90)], 3, prefix=160, **SMALL, splits=3, least=96)


def compare_blocks(device):
    """Whole prompts under block-causal and windowed attention, aligned to the last query, with padding before."""
    for window in (9, 1) if device != "cpu" else (1,):
        compare(device, [(0, 40, 0, 0, 0, 0, 0), (21, 40, 1, 0, 0, 0, 0)], 40, blocks=(6, window, 2), **SMALL)
        compare(device, [(0, 37, 0, 0, 0, 0, 0)], 37, blocks=(32, window, 0), **SMALL)


def compare_two_blocks_and_a_prefix(device):
    """A finished block and a shorter next one behind a prefix: each block sees its own window of blocks."""
    for window in (20, 3, 1) if device != "cpu" else (3,):
        first = 64 - 6 * window if window < 20 else 1
        rows = [(0, 9, 0, first, 64, 0, 0), (0, 8, 1, max(first, 60), 64, 0, 0)]
        compare(device, rows, 9, prefix=70, blocks=(6, window, 0), **SMALL)
        compare(device, rows, 9, prefix=70, blocks=(6, window, 0), **SMALL, splits=3, least=16)


FEW = {"rows": 16, "columns": 32, "few": True}


def compare_few_rows(device):
    """The kernel for few queries: rows with prefixes of other lengths, down to none, and hidden ranges."""
    rows = [(0, 5, 2, 3, 74, 0, 0), (0, 4, 0, 0, 0, 0, 0), (1, 5, 1, 17, 20, 0, 0), (0, 0, 3, 0, 64, 20, 45)]
    compare(device, rows, 5, prefix=75, **FEW)
    compare(device, [(0, 7, 0, 2, 37, 0, 0)], 7, prefix=37, size=64, group=1, **FEW)
    compare(device, [(0, 3, 1, 0, 33, 1, 32), (0, 19, 0, 0, 0, 0, 0)], 19, prefix=33, size=128, group=4, **FEW)
    compare(device, [(2, 21, 0, 0, 0, 0, 0)], 21, **FEW)


def compare_few_rows_in_blocks(device):
    """Two blocks behind a prefix, and a whole short prompt, each block with its window of blocks."""
    rows = [(0, 9, 0, 46, 64, 0, 0), (0, 8, 1, 60, 64, 0, 0), (0, 6, 2, 0, 0, 0, 0)]
    for window in (20, 3, 1) if device != "cpu" else (3,):
        compare(device, rows, 9, prefix=70, blocks=(6, window, 0), **FEW)
        compare(device, [(3, 11, 0, 0, 0, 0, 0)], 11, blocks=(4, window, 1), group=1, **FEW)


def compare_chosen_tiles(device):
    """The tiles that are chosen by shape, on the card."""
    for dtype in (torch.float32, torch.bfloat16):
        rows = [(0, 8, 0, 5, 1500, 0, 0), (0, 8, 1, 1400, 1500, 0, 0)]
        compare(device, rows, 8, prefix=1536, dtype=dtype, size=128)
        compare(device, [(0, 32, 0, 10, 90, 0, 0)], 32, prefix=128, dtype=dtype, size=64)
        for units, queries in ((1, 4), (1, 32), (8, 32), (16, 32), (40, 32)):  # few rows in tiles of 16 to 64, and many
            rows = [(0, queries, unit, 3, 300 - 5 * unit, 0, 0) for unit in range(units)]
            compare(device, rows, queries, prefix=384, dtype=dtype, size=128, group=2)
        compare(device, [(0, 64, 0, 128, 300, 0, 0)], 64, prefix=384, blocks=(32, 4, 0), dtype=dtype, size=128)
        compare(device, [(0, 300, 0, 0, 0, 0, 0)], 300, blocks=(32, 20, 20), dtype=dtype, size=128)
        compare(device, [(70, 300, 0, 0, 0, 0, 0)], 300, blocks=(32, 2, 20), dtype=dtype, size=80)


CHECKS = [compare_prefix_and_own, compare_splits, compare_blocks, compare_two_blocks_and_a_prefix]
CHECKS += [compare_few_rows, compare_few_rows_in_blocks]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("check", [*CHECKS, compare_chosen_tiles])
def test_attention_on_a_gpu(check):
    check("cuda")
