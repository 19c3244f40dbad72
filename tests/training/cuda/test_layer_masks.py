"""A layer whose mask is not the first layer's is computed with its own, not replayed with the first one's."""

from types import SimpleNamespace

import torch
from torch import nn

from qwen3llada.training.cuda import layer_graphs


class Layer(nn.Module):
    def forward(self, hidden, attention_mask=None, position_embeddings=None):
        return "plain", attention_mask


def test_layers_of_another_policy_are_not_replayed(monkeypatch):
    first, other = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    graphs = SimpleNamespace(recorder=SimpleNamespace(recording=False), replayed=object(), mask=first)
    layer = layer_graphs.GraphedLayer(1, Layer(), graphs)
    monkeypatch.setattr(layer_graphs._Replay, "apply", lambda *_: ("replayed", None))
    hidden, angles = torch.zeros(1, 4, 8), (torch.zeros(1, 4, 2), torch.zeros(1, 4, 2))
    assert layer(hidden, first, angles)[0] == "replayed"
    kind, mask = layer(hidden, other, angles)
    assert kind == "plain"
    assert mask is other
    graphs.mask = None
    assert layer(hidden, None, angles)[0] == "replayed"
