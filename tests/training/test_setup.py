"""How layers are compiled."""

from functools import partial

import pytest
import torch
from runs import changed
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.modeling.objective import MaskedDiffusionObjective
from qwen3llada.training.setup import compile_layers


@pytest.fixture
def graphs(monkeypatch):
    """What is compiled, by a backend that runs it as it is."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return graphs


@pytest.fixture
def objective(pretraining, graphs):
    model = Qwen3LLadaForMaskedLM.from_pretrained(pretraining.model, attn_implementation="sdpa").train()
    assert compile_layers(model, changed(pretraining, compile="always"), torch.device("cpu"))
    return MaskedDiffusionObjective(model)


def run(objective, rows, length, *, padded):
    tokens = torch.zeros(rows, length, dtype=torch.long)
    mask = torch.arange(length)[None] < length - torch.arange(rows)[:, None] % 2 if padded else None
    return objective(tokens, tokens, torch.ones(rows, length), attention_mask=mask)


def test_a_layer_is_compiled_in_one_piece_under_ddp(objective, graphs, monkeypatch):
    """However small DDP's buckets are: what is fused decides the step's time.

    Forward only: a backward pass would start threads, after which other tests could not fork.
    """
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        run(DistributedDataParallel(objective, bucket_cap_mb=0.001), 2, 4, padded=False)
    finally:
        dist.destroy_process_group()
    assert len(graphs) == 2  # the layers share one, the last norm has one


def test_nothing_runs_uncompiled_however_many_shapes_there_are(objective, graphs, caplog):
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            for rows, length in ((4, 16), (4, 12), (2, 16), (1, 12), (1, 1)):
                for padded in (False, True):
                    run(objective, rows, length, padded=padded)
    assert len(graphs) > 10
    assert "recompile_limit" not in caplog.text
