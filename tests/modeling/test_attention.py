"""Attention policies against a scalar reading of their definition, pair by pair."""

import pytest
import torch
from pydantic import ValidationError

from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import (
    POLICIES,
    attention_bias,
    document_numbers,
    document_positions,
    layer_kinds,
    plan,
)
from qwen3llada.modeling.masks import block_mask
from qwen3llada.modeling.params import AttentionParams

PROMPTS, LENGTH, BLOCK, WINDOW = [0, 3, 7, 12], 12, 4, 1


def sees(policy: str, prompt: int, block_length: int, query: int, key: int) -> bool:
    """The table of the method, one pair of positions at a time."""
    if policy == "full":
        return True
    if policy in ("block_causal", "window"):
        back = query // block_length - key // block_length
        return back >= 0 and (policy == "block_causal" or back <= WINDOW)
    assert policy == "block"
    if key < prompt:
        return True
    if query < prompt:
        return False
    return (query - prompt) // block_length == (key - prompt) // block_length


def expected(policy, valid=None):
    return torch.tensor(
        [
            [
                [sees(policy, p, BLOCK, q, k) and (valid is None or bool(valid[b, k])) for k in range(LENGTH)]
                for q in range(LENGTH)
            ]
            for b, p in enumerate(PROMPTS)
        ]
    )[:, None]


@pytest.fixture
def valid():
    """Right padding, left padding, none, and a row that is padding alone."""
    mask = torch.ones(len(PROMPTS), LENGTH, dtype=torch.bool)
    mask[0, 9:] = mask[1, :2] = mask[3] = False
    return mask


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("padded", [False, True])
def test_bias_is_the_definition_pair_by_pair(policy, padded, valid):
    valid = valid if padded else None
    bias = attention_bias(policy, torch.tensor(PROMPTS), LENGTH, BLOCK, valid, window_blocks=WINDOW)
    if policy == "full" and not padded:
        assert bias is None
        return
    assert bias.shape == (len(PROMPTS), 1, LENGTH, LENGTH)
    assert set(bias.unique().tolist()) <= {0.0, -torch.inf}
    assert torch.equal(bias == 0, expected(policy, valid))
    given = {"dtype": torch.bool, "window_blocks": WINDOW}
    as_boolean = attention_bias(policy, torch.tensor(PROMPTS), LENGTH, BLOCK, valid, **given)
    assert torch.equal(as_boolean, bias == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bias_comes_in_the_type_asked_for(dtype):
    assert attention_bias("block", torch.tensor([2]), 8, 2, dtype=dtype).dtype == dtype


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("padded", [False, True])
def test_block_mask_is_the_same_mask(policy, padded, valid):
    valid = valid if padded else None
    prompts = torch.tensor(PROMPTS)
    mask = block_mask(policy, prompts, LENGTH, BLOCK, valid, window_blocks=WINDOW)
    if policy == "full" and not padded:
        assert mask is None
        return
    index = torch.arange(LENGTH)
    batch = torch.arange(len(PROMPTS))[:, None, None]
    pairs = mask.mask_mod(batch, torch.zeros(()), index[:, None].expand(LENGTH, LENGTH)[None], index[None, None, :])
    assert torch.equal(pairs.expand(-1, LENGTH, LENGTH)[:, None], expected(policy, valid))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("padded", [False, True])
def test_documents_do_not_see_each_other(policy, padded, valid):
    """Pair by pair, in both forms of the mask; the end of a document belongs to it."""
    valid, end = valid if padded else None, 99
    tokens = torch.arange(len(PROMPTS) * LENGTH).view(len(PROMPTS), LENGTH) % 7
    tokens[0, 4] = tokens[1, [0, 1, 11]] = tokens[2, 6] = end
    documents = document_numbers(tokens, end)
    ends = [[position for position, token in enumerate(row) if token == end] for row in tokens.tolist()]
    numbers = [[sum(e < position for e in row) for position in range(LENGTH)] for row in ends]
    assert documents.tolist() == numbers
    same = torch.tensor([[[row[q] == row[k] for k in range(LENGTH)] for q in range(LENGTH)] for row in numbers])
    wanted = expected(policy, valid) & same[:, None]
    firsts = [[row.index(number) for number in row] for row in numbers]
    assert document_positions(documents).tolist() == [
        [position - first for position, first in enumerate(row)] for row in firsts
    ]
    for b, q, k in same.nonzero().tolist():  # blocks are counted anew in each document
        first = firsts[b][q]
        inside = sees(policy, max(0, PROMPTS[b] - first), BLOCK, q - first, k - first)
        wanted[b, 0, q, k] = inside and (valid is None or bool(valid[b, k]))
    prompts = torch.tensor(PROMPTS)
    given = {"documents": documents, "window_blocks": WINDOW}
    bias = attention_bias(policy, prompts, LENGTH, BLOCK, valid, torch.bool, **given)
    assert torch.equal(bias, wanted)
    tiles = block_mask(policy, prompts, LENGTH, BLOCK, valid, **given)
    index, batch = torch.arange(LENGTH), torch.arange(len(PROMPTS))[:, None, None]
    pairs = tiles.mask_mod(batch, torch.zeros(()), index[:, None].expand(LENGTH, LENGTH)[None], index[None, None, :])
    assert torch.equal(pairs.expand(-1, LENGTH, LENGTH)[:, None], wanted)
    with pytest.raises(ValueError, match="documents has shape"):
        attention_bias(policy, prompts, LENGTH, BLOCK, valid, documents=documents[:, 1:])


def test_block_mask_leaves_out_the_tiles_that_hold_no_visible_pair():
    """Four blocks of one tile (128 positions) each: the diagonal and the prompt's column, 1 + 3 * 2 of 16 tiles."""
    mask = block_mask("block", torch.tensor([128]), 512, 128)
    assert mask.shape == (1, 1, 512, 512)
    assert int(mask.to_dense().sum()) == 1 + 3 * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("diagonal", torch.tensor([1]), 4, 2), "policy='diagonal' must be one of full, block, block_causal, window"),
        (("block", torch.tensor([1]), 4, 0), "block_length=0 must be at least 1"),
        (("block", torch.tensor(1), 4, 2), r"shape \(\) but must be \[B\]"),
        (("block", torch.tensor([1]), 4, 2, torch.ones(1, 5, dtype=torch.bool)), r"\(1, 5\).* must be \(1, 4\)"),
        (("block", torch.tensor([1]), 4, 2, torch.ones(1, 4)), "boolean"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    for function in (attention_bias, block_mask):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


def test_the_training_knob_takes_what_training_can_do():
    assert AttentionParams().policy == "full"
    assert AttentionParams(policy="block", block_length=4).block_length == 4
    for knobs in ({"block_length": 0}, {"blocks": 3}, {"window_blocks": -1}):
        with pytest.raises(ValidationError):
            AttentionParams(**knobs)
    for policy in (*POLICIES, "alternate:full,block", ("block_causal", "window", "window")):
        assert AttentionParams(policy=policy).policy == policy


@pytest.mark.parametrize(
    ("policy", "layers", "names"),
    [
        ("block", 3, ["block"] * 3),
        ("alternate:full,block", 5, ["full", "block", "full", "block", "full"]),
        ("alternate:window, block_causal", 2, ["window", "block_causal"]),
        (["full", "full", "block"], 3, ["full", "full", "block"]),
    ],
)
def test_plans(policy, layers, names):
    assert list(plan(policy, layers)) == names
    kinds = layer_kinds(policy, layers)
    assert len(set(zip(kinds, names, strict=True))) == len(set(kinds)) == len(set(names))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            "alternate:full,block_causal",
            r"must not mix .* of \{full, block\} with .*\{block_causal, window\}",
        ),
        (["window", "block", "block"], "would carry later tokens into an earlier corrupted one"),
        ("alternate:full", "must name two policies"),
        ("alternate:full,diagonal", "'diagonal' must be one of full, block, block_causal, window"),
        (["full", "full"], "must hold one policy for each of the model's 3 layers"),
    ],
)
def test_plans_that_are_none(policy, message):
    with pytest.raises(InputError, match=message) as caught:
        plan(policy, 3)
    assert "\n" not in str(caught.value)
    if "each of" not in message:
        with pytest.raises(ValidationError, match=message):
            AttentionParams(policy=policy)
