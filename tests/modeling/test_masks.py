"""Masks of training passes over corrupted and clean copies, against a scalar reading of the definition."""

import pytest
import torch

from qwen3llada.modeling.masks import Columns, blocks_of_copies, dense_mask, flex_mask, mask_of_shape

WINDOW = 1


def sees(policy, first_clean, copy, blocks, documents, query, key):
    """One pair of columns: `copy`, `blocks` and `documents` of each column."""
    if documents[query] != documents[key]:
        return False
    back = blocks[query] - blocks[key]
    shown = back >= 0 and (policy == "block_causal" or back <= WINDOW)
    if key < first_clean:  # a corrupted block is seen only by itself
        return query < first_clean and copy[query] == copy[key] and back == 0
    return shown and (query >= first_clean or back > 0)


@pytest.mark.parametrize("policy", ["block_causal", "window"])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("kind", ["alike", "padded", "documents"])
def test_who_sees_whom(policy, views, kind):
    generator = torch.Generator().manual_seed(views)
    corrupted, clean, rows = 6, 10, 3
    first_clean, total = views * corrupted, views * corrupted + clean
    own = torch.arange(clean) // 3
    blocks = torch.cat([own[4:].repeat(views), own])[None]
    copy = torch.cat([torch.arange(views).repeat_interleave(corrupted), torch.full((clean,), views)]).tolist()
    documents = valid = None
    if kind != "alike":
        blocks = blocks.repeat(rows, 1)
    if kind == "padded":
        valid = torch.rand(rows, total, generator=generator) < 0.7
    if kind == "documents":
        documents = torch.randint(0, 2, (rows, total), generator=generator)
    columns = Columns(blocks=blocks, documents=documents, valid=valid, corrupted=corrupted, views=views)
    expected = torch.zeros(len(blocks), total, total, dtype=torch.bool)
    for b in range(len(blocks)):
        for q in range(total):
            for k in range(total):
                document = [0] * total if documents is None else documents[b].tolist()
                seen = sees(policy, first_clean, copy, blocks[b].tolist(), document, q, k)
                expected[b, q, k] = seen and (valid is None or bool(valid[b, k]))
    assert expected.any(-1).any()
    assert torch.equal(dense_mask(policy, columns, WINDOW)[:, 0], expected)
    tiles = flex_mask(policy, columns, WINDOW, rows)
    index, batch = torch.arange(total), torch.arange(len(blocks))[:, None, None]
    pairs = tiles.mask_mod(batch, torch.zeros(()), index[None, :, None], index[None, None, :])
    assert torch.equal(pairs.expand_as(expected), expected)
    assert tiles.shape[0] == (1 if kind == "alike" else rows)


@pytest.mark.parametrize("policy", ["block_causal", "window"])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(("length", "block"), [(256, 32), (200, 48), (130, 4), (128, 32), (96, 128)])
def test_mask_of_a_shape(policy, views, length, block):
    """Where copies are alike the mask compares with limits: the same pairs as by block numbers, and tiles that fit."""
    total, device = length * (views + 1), torch.device("cpu")
    mask = mask_of_shape(policy, WINDOW, length, views, total, block, True, device)
    columns = Columns(blocks=blocks_of_copies(length, views, length, block, device), corrupted=length, views=views)
    expected = dense_mask(policy, columns, WINDOW)[0, 0]
    index, zero = torch.arange(total), torch.zeros((), dtype=torch.long)
    pairs = mask.mask_mod(zero, zero, index[:, None], index[None])
    assert torch.equal(pairs, expected)
    size, count = 128, -(-total // 128)
    by_query = (mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)
    by_key = (mask.q_num_blocks, mask.q_indices), (mask.full_q_num_blocks, mask.full_q_indices)
    for lists, transposed in ((by_query, False), (by_key, True)):
        kinds = {
            (j, i) if transposed else (i, j): full
            for full, (number, indices) in enumerate(lists)
            for i in range(count)
            for j in indices[0, 0, i, : number[0, 0, i]].tolist()
        }
        for i in range(count):
            for j in range(count):
                tile = expected[i * size : (i + 1) * size, j * size : (j + 1) * size]
                assert bool(tile.any()) == ((i, j) in kinds), (i, j)
                assert not kinds.get((i, j)) or (bool(tile.all()) and tile.shape == (size, size)), (i, j)


def test_mask_of_alike_copies_with_padding():
    """Padding differs between rows, so the columns' numbers do not say all."""
    blocks = blocks_of_copies(8, 1, 8, 4, torch.device("cpu"))
    valid = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.7
    columns = Columns(blocks=blocks, valid=valid, corrupted=8, block_length=4)
    mask, index = flex_mask("block_causal", columns, WINDOW, 2), torch.arange(16)
    pairs = mask.mask_mod(torch.arange(2)[:, None, None], torch.zeros(()), index[:, None], index)
    assert torch.equal(pairs, dense_mask("block_causal", columns, WINDOW)[:, 0])
    assert mask.limits is None


def test_padding_alone_is_a_mask_of_keys():
    valid = torch.arange(5) < torch.tensor([[5], [2]])
    columns = Columns(blocks=torch.zeros(1, 5, dtype=torch.int64), valid=valid)
    mask = dense_mask("full", columns, WINDOW)
    assert mask.shape == (2, 1, 1, 5)
    assert torch.equal(mask[:, 0, 0], valid)
    columns = Columns(blocks=columns.blocks, valid=valid, documents=torch.zeros(2, 5, dtype=torch.int64))
    assert torch.equal(dense_mask("full", columns, WINDOW), mask.expand(2, 1, 5, 5))
