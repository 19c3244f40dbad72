"""Layers replayed as CUDA graphs give the same bits as plain layers."""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from runs import assert_same_run, changed, elsewhere
from tiny_settings import write_model
from torch import distributed as dist
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.parallel import DistributedDataParallel

from qwen3llada import Qwen3LLadaForMaskedLM
from qwen3llada.training.cuda.gradient_sum import ENOUGH_TOKENS, HOPPER_MULTIPROCESSORS, SPARED, GradientSum
from qwen3llada.training.cuda.graph_recorder import Inputs
from qwen3llada.training.cuda.layer_graphs import LayerGraphs
from qwen3llada.training.loop import train
from qwen3llada.training.watch.peak_memory import PeakMemory

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LONG, SHORT, PADDED = (3, 16), (3, 8), (3, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs") / "model"
    write_model(folder, hidden_size=64, intermediate_size=128, head_dim=32, num_hidden_layers=3)
    return folder


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def load(folder, *, graphed, implementation="sdpa"):
    """The model with compiled layers, and their graphs."""
    from qwen3llada.training.cuda.fused_attention import fuse_attention

    model = Qwen3LLadaForMaskedLM.from_pretrained(folder, attn_implementation=implementation).cuda().train()
    fuse_attention(model)
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)  # the same kernels regardless of earlier calls
    return model, LayerGraphs(model.model.layers) if graphed else None


def run(model, shape, number):
    """Hidden states of a batch. Gradients are added to existing ones."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(0, 32, shape, generator=generator).cuda()
    mask = None
    if shape == PADDED:
        mask = torch.arange(shape[1])[None] < torch.randint(4, shape[1], (shape[0], 1), generator=generator)
        mask = mask.cuda()
    body = model if isinstance(model, DistributedDataParallel) else model.model
    hidden = body(input_ids=tokens, attention_mask=mask).last_hidden_state
    hidden.square().sum().backward()
    return hidden.detach().clone()


def assert_same_gradients(one, other, tolerance=0.0):
    """Within `tolerance` of each parameter's largest gradient."""
    for (name, parameter), twin in zip(one.named_parameters(), other.parameters(), strict=True):
        allowed = tolerance * float(twin.grad.abs().max())
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=0, atol=allowed, msg=lambda m, n=name: f"{n}: {m}")


def test_outputs_and_gradients_are_the_same_bits_in_any_order_of_shapes(folder):
    plain, _ = load(folder, graphed=False)
    graphed, graphs = load(folder, graphed=True)
    order = [LONG] * 4 + [PADDED] * 4 + [LONG, PADDED, SHORT, LONG, SHORT, PADDED, PADDED, SHORT, SHORT, LONG]
    for number, shape in enumerate(order):
        assert torch.equal(run(graphed, shape, number), run(plain, shape, number)), (number, shape)
        if number % 3:  # otherwise the next batch adds to these gradients
            assert_same_gradients(graphed, plain)
            plain.zero_grad()
            graphed.zero_grad()
    assert len(graphs.shapes) == 3


def steps_with(model, masks, length):
    """Outputs and gradients of one pass for each mask."""
    for number, mask in enumerate(masks):
        tokens = torch.randint(0, 32, (2, length), generator=torch.Generator().manual_seed(number)).cuda()
        hidden = model.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        hidden.square().sum().backward()
        yield hidden.detach().clone(), [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()


def assert_same_steps(folder, masks, length, **given):
    (plain, _), (graphed, graphs) = load(folder, graphed=False, **given), load(folder, graphed=True, **given)
    pairs = zip(steps_with(plain, masks, length), steps_with(graphed, masks, length), strict=True)
    for number, ((hidden, gradients), (other, others)) in enumerate(pairs):
        assert torch.equal(hidden, other), number
        assert all(torch.equal(one, twin) for one, twin in zip(gradients, others, strict=True)), number
    assert graphs.recorder.recorded == 2 * len(graphed.model.layers)


def test_layers_of_two_policies_are_replayed_with_their_own_masks(tmp_path):
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    shapes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "num_hidden_layers": 3}
    write_model(tmp_path / "model", layer_types=kinds, **shapes)
    generator = torch.Generator().manual_seed(0)
    masks = [
        {kind: (torch.rand(2, 1, 16, 16, generator=generator) < 0.6).cuda() for kind in dict.fromkeys(kinds)}
        for _ in range(7)
    ]
    assert_same_steps(tmp_path / "model", masks, 16)


def test_a_block_mask_of_all_batches_of_a_shape_is_replayed(folder):
    blocks = create_block_mask(lambda b, h, q, k: q // 4 >= k // 4, None, None, 256, 256, device="cuda")
    assert_same_steps(folder, [blocks] * 7, 256, implementation="flex_attention")


def test_passes_that_cannot_be_replayed_and_released_graphs(folder):
    plain, _ = load(folder, graphed=False)
    graphed, graphs = load(folder, graphed=True)
    for number in range(4):
        run(graphed, LONG, number)
    assert len(graphs.shapes) == 1
    tokens = torch.arange(48).view(LONG).cuda() % 32
    with torch.no_grad():
        assert torch.equal(graphed.model(tokens).last_hidden_state, plain.model(tokens).last_hidden_state)

    plain.zero_grad(), graphed.zero_grad()
    for model in (plain, graphed):  # two forward passes, then both backward passes
        first, second = (model.model(tokens + n).last_hidden_state for n in (0, 1))
        (first.square().sum() + second.sum()).backward()
    assert_same_gradients(graphed, plain)

    graphs.release()
    assert not graphs.shapes
    for number in range(3):
        plain.zero_grad(), graphed.zero_grad()
        assert torch.equal(run(graphed, LONG, number), run(plain, LONG, number))
        assert_same_gradients(graphed, plain)
    assert len(graphs.shapes) == 1


def test_an_output_dropped_before_its_backward_graphs_are_captured(folder):
    plain, _ = load(folder, graphed=False)
    graphed, graphs = load(folder, graphed=True)
    for number in range(2):
        run(graphed, PADDED, number)
    graphed.model(torch.arange(36).view(PADDED).cuda() % 32, attention_mask=torch.ones(PADDED).bool().cuda())
    for number in range(2, 5):
        plain.zero_grad(), graphed.zero_grad()
        assert torch.equal(run(graphed, PADDED, number), run(plain, PADDED, number))
        assert_same_gradients(graphed, plain)
    assert graphs.recorder.recorded == 2 * len(graphed.model.layers)


def test_memory_that_graphs_keep_is_part_of_the_peak(folder):
    model, graphs = load(folder, graphed=True)
    peak = PeakMemory(torch.device("cuda"), graphs)
    for number in range(4):
        run(model, LONG, number)
    pool = graphs.recorder.pool()
    assert peak.read() >= torch.cuda.memory_allocated() + pool.idle
    assert 0 < pool.idle <= torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    assert pool.idle < pool.total <= torch.cuda.memory_reserved()  # the pool includes the gradients
    graphs.release()
    assert graphs.recorder.pool() == (0, 0)


def test_graphs_make_way_for_a_pass_that_does_not_fit_beside_them(folder, monkeypatch):
    model, graphs = load(folder, graphed=True)
    for number in range(4):
        run(model, LONG, number)
    needed = graphs.recorder.pool().total * SHORT[1] // LONG[1]

    hidden = torch.zeros(*SHORT, 64, device="cuda", requires_grad=True)

    def begin_beside(free):
        """Begin a pass on a device with `free` bytes besides the graphs' pool."""
        beside = torch.cuda.memory_reserved() - torch.cuda.memory_allocated() - graphs.recorder.pool().idle
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free - beside, 0))
        graphs.begin(hidden, Inputs(*torch.zeros(2, 1), None))

    begin_beside(needed)
    assert len(graphs.shapes) == 1
    begin_beside(needed - 1)
    assert not graphs.shapes


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_written_where_ddp_sends_them_from(folder, monkeypatch, shared):
    monkeypatch.setattr(torch._dynamo.config, "optimize_ddp", False)  # as in training
    plain, _ = load(folder, graphed=False)
    graphed, _ = load(folder, graphed=False)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(
            graphed.model, device_ids=[0], gradient_as_bucket_view=True, bucket_cap_mb=0.01
        )
        reduction, left_out = GradientSum(wrapped), None
        if shared:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
            hopper = torch.cuda.get_device_properties().multi_processor_count == HOPPER_MULTIPROCESSORS
            assert reduction.share_processors(ENOUGH_TOKENS) == hopper
            left_out = SPARED if hopper else None
        graphs = LayerGraphs(graphed.model.layers, reduction)
        seen, record = Counter(), graphs.recorder.record
        carved_out = torch._C._get_sm_carveout_experimental
        graphs.recorder.record = lambda work: (seen.update([carved_out()]), record(work))[1]
        for number, shape in enumerate([LONG, SHORT, LONG, LONG] * 4):
            early = number < 4  # nothing was reduced, so DDP's buckets are not known yet
            with wrapped.no_sync() if early or number % 2 else nullcontext():
                assert torch.equal(run(wrapped, shape, number), run(plain, shape, number)), (number, shape)
            assert not (early and graphs.shapes), "the place of a gradient is not known before the second reduction"
            if early or number % 2:
                continue  # the next batch adds to these
            # Products that leave SMs free may sum in another order.
            assert_same_gradients(graphed, plain, tolerance=1e-5 if shared else 0.0)
            plain.zero_grad(), graphed.zero_grad()
        assert len(graphs.shapes) == 2
        passes = 2 * len(graphs.layers)
        assert seen == Counter([None] * passes + [left_out] * passes), "backward passes, and no others, leave some out"
        run(wrapped, SHORT, 0)
        for layer in graphed.model.layers:
            for parameter in layer.parameters():
                assert parameter.grad.data_ptr() == reduction.places[parameter].data_ptr()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 1},
        {"bf16": False, "fp16": True},
        {"param_dtype": "bfloat16"},
        {"attention": {"policy": "block_causal", "block_length": 4}},
    ],
)
def test_training_gives_the_same_bits(pretraining, folder, tmp_path, changes):
    settings = {"model": folder, "max_steps": 5, "save_steps": 5, "logging_steps": 1, "bf16": True}
    noise = {"random_length_prob": 0.0}
    replayed = changed(pretraining, **settings | changes, noise=noise, do_eval_loss=False)
    assert train(replayed, seed=1)["graphed_shapes"] == 1
    launched = elsewhere(replayed, tmp_path / "launched", cuda_graphs="never")
    assert train(launched, seed=1)["graphed_shapes"] == 0
    assert_same_run(replayed, launched, 5)
