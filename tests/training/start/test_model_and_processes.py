"""Compilation of layers. Run in separate processes, because the compiler starts threads and other tests fork."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from runs import changed, start_process
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.objective.objective import MaskedDiffusionObjective
from qwen3llada.training.cuda.layer_graphs import LayerGraphs
from qwen3llada.training.start.model_and_processes import compile_layers, graph_layers


def in_a_process(work, *args):
    process = start_process(work, *args)
    process.join()
    assert process.exitcode == 0


def compiled_objective(params):
    """Compile with a backend that runs each graph unchanged. Returns the list of graphs."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compile = partial(torch.compile, backend=backend)
    model = Qwen3LLadaForMaskedLM.from_pretrained(params.model, attn_implementation="sdpa").train()
    assert compile_layers(model, changed(params, compile="always"), torch.device("cpu"))
    return MaskedDiffusionObjective(model), graphs


def run(objective, rows, length, *, padded=False):
    tokens = torch.zeros(rows, length, dtype=torch.long)
    mask = torch.arange(length)[None] < length - torch.arange(rows)[:, None] % 2 if padded else None
    return objective(tokens, tokens, torch.ones(rows, length), attention_mask=mask)


def test_a_layer_is_compiled_in_one_piece_under_ddp(pretraining):
    """Layers stay whole however small DDP's buckets are: fusion decides the time of a step."""
    in_a_process(compile_under_ddp, pretraining)


def compile_under_ddp(params):
    dist._DEFAULT_FIRST_BUCKET_BYTES = 1
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    objective, graphs = compiled_objective(params)
    run(DistributedDataParallel(objective, bucket_cap_mb=0.001), 2, 4).backward()
    dist.destroy_process_group()
    assert len(graphs) == 2, f"{len(graphs)}, but the layers share one, and the last norm has one"


def test_nothing_runs_uncompiled_however_many_shapes_there_are(pretraining):
    in_a_process(compile_many_shapes, pretraining)


def compile_many_shapes(params):
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    objective, graphs = compiled_objective(params)
    shapes = ((4, 16), (2, 12), (1, 12), (1, 1))
    variants = [(True, shape, padded) for shape in shapes for padded in (False, True)] + [(False, shapes[0], True)]
    for gradients, (rows, length), padded in variants:
        with torch.set_grad_enabled(gradients):
            run(objective, rows, length, padded=padded)
    assert len(graphs) > 10


@pytest.mark.parametrize(
    ("changes", "graphed"),
    [
        ({}, True),
        ({"cuda_graphs": "never"}, False),
        ({"gradient_checkpointing": True}, False),
        ({"adapter": {"method": "lora"}}, False),
    ],
)
def test_layers_are_graphed_where_they_can_be_and_share_the_card_with_the_sums(
    pretraining, monkeypatch, changes, graphed
):
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    params = changed(pretraining, micro_batch_size=3, max_length=16, **changes)
    model = Qwen3LLadaForMaskedLM.from_pretrained(params.model)
    accelerator, tokens = SimpleNamespace(is_fsdp2=False, device=torch.device("cuda")), []
    reduction = SimpleNamespace(share_processors=tokens.append)
    graphs = graph_layers(model, params, accelerator, reduction)
    assert isinstance(graphs, LayerGraphs) == graphed
    assert tokens == [48] * graphed
    if graphed:
        assert graphs.reduction is reduction
        assert [layer.forward for layer in model.model.layers] == graphs.layers
