"""A forward pass without its backward pass does not keep later ones from the graphs (see `recorded_operations`)."""

import gc

import pytest
import torch
from recorded_operations import RecorderOfOperations
from tiny_settings import write_model

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.objective.last_layer import shorten_last_layer
from qwen3llada.training.cuda import layer_graphs
from qwen3llada.training.cuda.layer_graphs import RECORDED_AT, LayerGraphs

ROWS, LENGTH, LAYERS = 2, 8, 3


class Stop(Exception):
    pass


@pytest.fixture
def twins(tmp_path, monkeypatch):
    """The same model twice, and the graphs of the second one's layers."""
    monkeypatch.setattr(layer_graphs, "GraphRecorder", RecorderOfOperations)
    write_model(tmp_path / "model", num_hidden_layers=LAYERS)
    load = Qwen3LLadaForMaskedLM.from_pretrained
    plain, graphed = (load(tmp_path / "model", attn_implementation="sdpa").train() for _ in range(2))
    shorten_last_layer(plain), shorten_last_layer(graphed)
    return plain, graphed, LayerGraphs(graphed.model.layers)


@pytest.fixture
def recorded(twins):
    """The same, after as many passes as it takes to record all graphs."""
    for number in range(RECORDED_AT):
        assert_same(*twins[:2], number)
    assert twins[2].recorder.recorded == 2 * LAYERS
    return twins


def forward(model, number):
    """Hidden states of a batch whose tokens and mask are its own."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(0, 32, (ROWS, LENGTH), generator=generator)
    mask = torch.rand((ROWS, 1, LENGTH, LENGTH), generator=generator)  # numbers, which are added to the scores
    return model.model(input_ids=tokens, attention_mask=mask).last_hidden_state


def assert_same_gradients(plain, graphed):
    for one, other in zip(plain.parameters(), graphed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def assert_same(plain, graphed, number):
    """Outputs and gradients of a whole step."""
    expected, found = forward(plain, number), forward(graphed, number)
    assert torch.equal(found, expected)
    for model, hidden in ((plain, expected), (graphed, found)):
        model.zero_grad()
        hidden.square().sum().backward()
    assert_same_gradients(plain, graphed)


def replays(graphs):
    """Of the forward and the backward graph of each layer."""
    (shape,) = graphs.shapes.values()
    return [(pair.forward.graph.replays, pair.backward.graph.replays) for pair in shape.pairs.values()]


def assert_replayed(twins, number):
    """The next step runs by graphs, with the results of plain layers."""
    before = replays(twins[2])
    assert_same(*twins[:2], number)
    assert replays(twins[2]) == [(one + 1, other + 1) for one, other in before]


def test_an_output_that_is_dropped_frees_the_graphs(recorded):
    _, graphed, graphs = recorded
    for number in range(3):
        hidden = forward(graphed, 7 + number)
        hidden.register_hook(lambda gradient: gradient)
        assert graphs.awaits_backward
        loss = hidden.square().sum()
        del hidden
        assert graphs.replayed is not None
        del loss
    assert_replayed(recorded, 5)


def test_the_data_of_an_output_alone_do_not_hold_the_graphs(recorded):
    kept = forward(recorded[1], 7).detach()
    assert_replayed(recorded, 5)
    assert kept.shape[:2] == (ROWS, LENGTH)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_forward_pass_that_fails_frees_the_graphs(recorded, layer):
    _, graphed, _ = recorded

    def fail(*_):
        raise Stop

    hook = graphed.model.layers[layer].register_forward_hook(fail)
    with pytest.raises(Stop):
        forward(graphed, 7)
    hook.remove()
    gc.collect()  # the exception and its frames refer to each other
    assert_replayed(recorded, 5)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_backward_pass_that_fails_frees_the_graphs(recorded, layer):
    _, graphed, _ = recorded

    def fail(*_):
        raise Stop

    hook = graphed.model.layers[layer].mlp.down_proj.weight.register_hook(fail)
    with pytest.raises(Stop):
        forward(graphed, 7).sum().backward()
    hook.remove()
    gc.collect()
    assert_same(*recorded[:2], 4)  # on a CPU, the nodes left in autograd's queue go with the next backward pass
    assert_replayed(recorded, 5)


def test_an_output_dropped_before_its_backward_graphs_are_recorded(twins):
    plain, graphed, graphs = twins
    for number in range(RECORDED_AT - 1):
        assert_same(plain, graphed, number)
    forward(graphed, 7)
    assert graphs.recorder.recorded == LAYERS
    with torch.no_grad():  # as an optimiser step does
        for parameter in (*plain.parameters(), *graphed.parameters()):
            parameter.mul_(0.9)
    assert_same(plain, graphed, 5)
    assert graphs.recorder.recorded == 2 * LAYERS
    assert_replayed(twins, 6)


def test_a_second_pass_before_the_backward_pass_of_the_first_runs_without_graphs(recorded):
    plain, graphed, graphs = recorded
    before = replays(graphs)
    for model in (plain, graphed):
        model.zero_grad()
        first, second = forward(model, 7), forward(model, 8)
        with torch.no_grad():
            forward(model, 9)
        third = forward(model, 10)
        (first.square().sum() + second.square().sum()).backward()
        third.sum().backward()
    assert_same_gradients(plain, graphed)
    assert replays(graphs) == [(one + 1, other + 1) for one, other in before]
    assert_replayed(recorded, 5)


def test_an_output_that_is_kept_after_its_backward_pass_does_not_hold_the_graphs(recorded):
    hidden = forward(recorded[1], 7)
    hidden.sum().backward(retain_graph=True)
    assert_replayed(recorded, 5)
    with pytest.raises(RuntimeError, match="layer 2: a second backward pass needs activations that CUDA graphs have"):
        hidden.sum().backward()
    assert_replayed(recorded, 6)


def test_a_backward_pass_of_some_layers_still_awaits_the_others(recorded):
    _, graphed, graphs = recorded
    hidden = forward(graphed, 7)
    weight = graphed.model.layers[-1].mlp.down_proj.weight
    torch.autograd.grad(hidden.sum(), weight, retain_graph=True)
    before = replays(graphs)
    forward(graphed, 8).sum().backward()
    assert replays(graphs) == before
    with pytest.raises(RuntimeError, match="layer 2: a second backward pass"):
        hidden.sum().backward()
    del hidden
    gc.collect()
    assert_replayed(recorded, 5)
