"""Layer graphs hold one mask per layer. Graphs are recorded operations on the CPU here (`recorded_operations`)."""

import pytest
import torch
from recorded_operations import RecorderOfOperations
from tiny_settings import write_model
from torch.nn.attention.flex_attention import create_block_mask

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.objective.last_layer import shorten_last_layer
from qwen3llada.training.cuda import layer_graphs
from qwen3llada.training.cuda.graph_recorder import GraphShape, Inputs
from qwen3llada.training.cuda.layer_graphs import RECORDED_AT, LayerGraphs

ROWS, LENGTH, LAYERS = 2, 8, 4
FULL, OTHER = "full_attention", "sliding_attention"  # layers of either type get the mask of its name


@pytest.fixture
def twins(tmp_path, monkeypatch):
    """The same model twice, its layers of two types in turn, and the graphs of the second one's layers."""
    monkeypatch.setattr(layer_graphs, "GraphRecorder", RecorderOfOperations)
    kinds = [FULL, OTHER] * (LAYERS // 2)
    write_model(tmp_path / "model", num_hidden_layers=LAYERS, layer_types=kinds)
    load = Qwen3LLadaForMaskedLM.from_pretrained
    plain, graphed = (load(tmp_path / "model", attn_implementation="sdpa").train() for _ in range(2))
    shorten_last_layer(plain), shorten_last_layer(graphed)
    return plain, graphed, LayerGraphs(graphed.model.layers)


def masks(number, *, full=True):
    """Masks [B, 1, L, L] of a pass: each type of layer has its own, and each pass others."""
    generator = torch.Generator().manual_seed(number)
    shape = (ROWS, 1, LENGTH, LENGTH)
    seen = [torch.rand(shape, generator=generator) < 0.6 for _ in range(2)]
    return {FULL: seen[0] if full else None, OTHER: seen[1]}


def run(model, number, mask, **given):
    """Hidden states of a batch. Its gradients are added to those that the model has."""
    tokens = torch.randint(0, 32, (ROWS, LENGTH), generator=torch.Generator().manual_seed(number))
    hidden = model.model(input_ids=tokens, attention_mask=mask, **given).last_hidden_state
    hidden.square().sum().backward()
    return hidden.detach().clone()


def assert_same(plain, graphed, number, mask, **given):
    expected, found = run(plain, number, mask, **given), run(graphed, number, mask, **given)
    assert torch.equal(found, expected)
    for one, other in zip(plain.parameters(), graphed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    if number % 2:  # every second pass adds to the gradients of the one before
        plain.zero_grad(), graphed.zero_grad()


def replays(graphs):
    """Of each layer."""
    (shape,) = graphs.shapes.values()
    return [pair.forward.graph.replays for pair in shape.pairs.values()]


@pytest.mark.parametrize("full", [True, False])
def test_each_layer_is_replayed_with_its_own_mask_of_the_pass(twins, full):
    plain, graphed, graphs = twins
    for number in range(RECORDED_AT + 4):
        assert_same(plain, graphed, number, masks(number, full=full))
    (shape,) = graphs.shapes.values()
    assert graphs.recorder.recorded == 2 * LAYERS
    assert replays(graphs) == [5] * LAYERS
    assert shape.masks[0] is shape.masks[2] or not full
    assert shape.masks[1] is shape.masks[3]


def test_a_layer_whose_mask_has_another_form_runs_without_its_graph(twins):
    plain, graphed, graphs = twins
    for number in range(RECORDED_AT + 1):
        assert_same(plain, graphed, number, masks(number))
    for other in (None, masks(9)[OTHER][:, :, :1]):  # all see all; the same keys for each query
        for number in (6, 7):
            assert_same(plain, graphed, number, masks(number) | {OTHER: other})
            assert_same(plain, graphed, number, masks(number))
    assert graphs.recorder.recorded == 2 * LAYERS


def test_layers_that_shared_a_mask_and_no_longer_do(twins):
    """Their backward passes read the mask again, so a second mask of the same pass must not overwrite it."""
    plain, graphed, graphs = twins
    for number in range(RECORDED_AT + 1):
        assert_same(plain, graphed, number, masks(number)[FULL])
    assert replays(graphs) == [2] * LAYERS
    for number in range(4, 8):
        assert_same(plain, graphed, number, masks(number))
    assert replays(graphs) == [6, 2] * (LAYERS // 2)


def test_the_last_layers_mask_of_fewer_queries_is_that_of_the_pass(twins):
    plain, graphed, graphs = twins
    for number in range(RECORDED_AT + 4):
        mask = masks(number)
        assert_same(plain, graphed, number, mask, kept=4, kept_mask=mask[OTHER][:, :, :4])
    assert replays(graphs) == [5] * LAYERS


def block_mask():
    return create_block_mask(lambda b, h, q, k: q >= k, None, None, 128, 128, device="cpu")


def test_a_block_mask_is_replayed_where_it_is_the_same_object():
    shape, kept = GraphShape(*torch.zeros(2, 1)), block_mask()
    for _ in range(2):
        assert shape.take_mask(0, kept)
        shape.begin_pass(*torch.zeros(2, 1))
    assert not shape.take_mask(0, block_mask())
    assert not shape.take_mask(0, None)
    assert not shape.take_mask(0, torch.ones(1, 1, 128, 128, dtype=torch.bool))


def test_only_block_masks_that_come_again_are_captured(twins, monkeypatch):
    _, _, graphs = twins
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    hidden, angles = torch.zeros(1, 128, 16, requires_grad=True), torch.zeros(2, 1, 128, 8)

    def begin(mask):
        graphs.begin(hidden, Inputs(*angles, mask))
        return graphs.replayed is not None

    kept = block_mask()
    assert not any(begin(block_mask()) for _ in range(2 * RECORDED_AT))
    assert not graphs._seen_with
    assert [begin(kept) for _ in range(RECORDED_AT + 1)] == [False] * (RECORDED_AT - 1) + [True, True]
