"""FlashAttention-4's operators: on a CPU with dense kernels in place of the package's, on a Hopper GPU with those."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from runs import changed
from tiny_settings import write_model

from qwen3llada.modeling.masks import Columns, Limits, blocks_of_copies, dense_mask, mask_of_shape, sees_by_limits
from qwen3llada.objective.attention_kernels import has_flash_attention_4
from qwen3llada.training.cuda import flash_attention_4 as operators
from qwen3llada.training.loop import train

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9 and has_flash_attention_4()
on_hopper = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="needs an H100 or H200, and flash-attn-4")]
DIM, SCALE = 128, 0.1


def dense(query, key, value, visible):
    """Attention [B, Q, H, d] and log-sum-exp [B, H, Q] in float32; `visible` [Q, S]."""
    query, key, value = (x.float().transpose(1, 2) for x in (query, key, value))
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = (query @ key.transpose(-1, -2) * SCALE).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2), scores.logsumexp(-1)


def dense_gradients(query, key, value, gradient, visible):
    """Written out: within an operator autograd is off."""
    heads = [x.detach().float().transpose(1, 2) for x in (query, key, value, gradient)]
    shared = query.shape[2] // key.shape[2]
    q, k, v, g = heads[0], *(x.repeat_interleave(shared, 1) for x in heads[1:3]), heads[3]
    weights = (q @ k.transpose(-1, -2) * SCALE).masked_fill(~visible, -torch.inf).softmax(-1)
    of_weights = g @ v.transpose(-1, -2)
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * SCALE
    of_keys, of_values = (
        x.unflatten(1, (-1, shared)).sum(2) for x in (of_scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ g)
    )
    return [x.transpose(1, 2) for x in (of_scores @ k, of_keys, of_values)]


def given(rows, queries, columns, heads, key_heads, device):
    generator = torch.Generator(device).manual_seed(0)
    options = {"dtype": torch.bfloat16, "device": device, "generator": generator}
    query, gradient = (torch.randn(rows, queries, heads, DIM, **options) for _ in range(2))
    key, value = (torch.randn(rows, columns, key_heads, DIM, **options) for _ in range(2))
    return *(x.requires_grad_() for x in (query, key, value)), gradient


@pytest.fixture
def kernels(monkeypatch):
    """Dense kernels under the names of the package's. Returns how many heads and key heads each call was given."""
    calls = []

    def seen(query, key, mask_mod, block_sparse_tensors):
        shape = query.shape[1], key.shape[1]
        if mask_mod is None:
            return torch.ones(shape, dtype=torch.bool)
        assert block_sparse_tensors.block_size == (128, 128)
        return mask_mod(torch.arange(shape[0])[:, None], torch.arange(shape[1])[None])

    def forward(query, key, value, *, softmax_scale, return_lse, pack_gqa, mask_mod=None, block_sparse_tensors=None):
        assert (softmax_scale, return_lse, pack_gqa) == (SCALE, True, False)
        calls.append((query.shape[2], key.shape[2]))
        output, log_sum = dense(query, key, value, seen(query, key, mask_mod, block_sparse_tensors))
        return output.to(query.dtype).contiguous(), log_sum.contiguous(), None, None, None

    def backward(
        query, key, value, output, gradient, log_sum, *,
        softmax_scale, dq, dk, dv, mask_mod=None, block_sparse_tensors=None,
    ):  # fmt: skip
        calls.append((query.shape[2], key.shape[2]))
        visible = seen(query, key, mask_mod, block_sparse_tensors)
        expected = dense(query, key, value, visible)
        assert (expected[0] - output).norm() <= 1e-2 * output.norm()
        torch.testing.assert_close(expected[1], log_sum)
        for place, found in zip((dq, dk, dv), dense_gradients(query, key, value, gradient, visible), strict=True):
            place.copy_(found)
        return dq, dk, dv

    def tiles(*lists, block_size):
        assert [x.dim() for x in lists] == [3, 4, 3, 4]
        return SimpleNamespace(block_size=block_size)

    names = {"interface": {"_flash_attn_fwd": forward, "_flash_attn_bwd": backward}}
    names["block_sparsity"] = {"BlockSparseTensorsTorch": tiles}
    for name in ("flash_attn", "flash_attn.cute", *(f"flash_attn.cute.{name}" for name in names)):
        module = ModuleType(name)
        module.__dict__.update(names.get(name.rpartition(".")[2], {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(operators, "_mask_function", lambda limits: lambda q, k: sees_by_limits(limits, q, k))
    return calls


def mask_and_pairs(policy, views, length, block, queries, device):
    """A `BlockMask`, and the pairs [Q, S] by block numbers."""
    total = length * (views + 1)
    mask = mask_of_shape(policy, 2, length, views, total, block, True, device, queries)
    columns = Columns(blocks=blocks_of_copies(length, views, length, block, device), corrupted=length, views=views)
    return mask, dense_mask(policy, columns, 2)[0, 0, : queries or total]


def assert_like_dense(attend, tensors, mask, visible):
    *inputs, gradient = tensors
    output = attend(*inputs, mask, SCALE)
    found = output, *torch.autograd.grad(output, inputs, gradient)
    expected = dense(*inputs, visible)[0], *dense_gradients(*tensors, visible)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.float() - other).norm() <= 1e-2 * other.norm()


@pytest.mark.parametrize(("heads", "calls"), [(2, [(2, 2)]), (4, [(2, 2)] * 2), (6, [(6, 2)])])
@pytest.mark.parametrize("compiled", [False, True])
def test_operators(kernels, heads, calls, compiled):
    """Two query heads of a key head have passes of their own in the backward pass."""
    cpu = torch.device("cpu")
    mask, visible = mask_and_pairs("block_causal", 1, 64, 32, None, cpu)
    attend = operators.flash_attention_4
    if compiled:
        attend = torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=False)
    assert_like_dense(attend, given(2, 128, 128, heads, 2, cpu), mask, visible)
    assert kernels == [(heads, 2), *calls]


def test_operators_without_a_mask(kernels):
    tensors = given(2, 48, 48, 4, 2, torch.device("cpu"))
    assert_like_dense(operators.flash_attention_4, tensors, None, torch.ones(48, 48, dtype=torch.bool))


def test_operators_are_registered_rightly(kernels):
    mask, _ = mask_and_pairs("block_causal", 1, 64, 32, None, torch.device("cpu"))
    tiles = [mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices]
    query, key, value, _ = given(1, 128, 128, 2, 2, torch.device("cpu"))
    arguments = (query, key, value, tiles, tiles, list(mask.limits), SCALE)
    torch.library.opcheck(operators.forward, arguments, test_utils=("test_schema", "test_faketensor"))


def test_which_passes_the_kernels_take():
    cpu = torch.device("cpu")
    alike, _ = mask_and_pairs("window", 2, 64, 4, None, cpu)
    assert alike.limits == Limits(64, 2, 4, 2)
    other = mask_of_shape("block_causal", 2, 32, 1, 96, 4, True, cpu)  # a shorter corrupted copy: blocks are read
    query = torch.zeros(1, 8, 2, DIM, dtype=torch.bfloat16)
    assert operators.can_compute(query, alike)
    assert operators.can_compute(query, None)
    assert not operators.can_compute(query, other)
    assert not operators.can_compute(query, torch.ones(1, 1, 8, 8, dtype=torch.bool))
    assert not operators.can_compute(query.float(), alike)

    @torch.compile(backend="eager", fullgraph=True)
    def chosen(query, mask):
        return query + 1 if operators.can_compute(query, mask) else query

    assert float(chosen(query, alike).mean()) == 1
    assert float(chosen(query, other).mean()) == 0


SHAPES = [
    ("block_causal", 1, 256, 32, None),
    ("block_causal", 1, 200, 48, None),
    ("block_causal", 2, 256, 4, None),
    ("block_causal", 1, 256, 32, 256),
    ("window", 1, 256, 32, None),
]


@pytest.mark.parametrize("shape", [pytest.param(shape, marks=on_hopper) for shape in SHAPES])
def test_kernels(shape):
    gpu = torch.device("cuda")
    mask, visible = mask_and_pairs(*shape, gpu)
    attend = torch.compile(operators.flash_attention_4, fullgraph=True, dynamic=False)
    assert_like_dense(attend, given(2, *visible.shape, 4, 2, gpu), mask, visible)


@pytest.mark.parametrize("heads", [pytest.param(heads, marks=on_hopper) for heads in (2, 4, 8)])
def test_kernels_without_a_mask(heads):
    gpu = torch.device("cuda")
    tensors = given(2, 200, 200, heads, 2, gpu)
    assert_like_dense(operators.flash_attention_4, tensors, None, torch.ones(200, 200, dtype=torch.bool, device=gpu))


CASES = [("block_causal", "never"), ("block_causal", "auto"), ("full", "auto")]


@pytest.mark.parametrize(("policy", "graphs"), [pytest.param(*case, marks=on_hopper) for case in CASES])
def test_training(pretraining, tmp_path, policy, graphs):
    """Losses of the kernels in use otherwise to bfloat16's rounding, by layers' graphs and without."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 128, "num_hidden_layers": 2}
    write_model(tmp_path / "model", **sizes)
    settings = {"model": tmp_path / "model", "max_steps": 6, "logging_steps": 1, "bf16": True, "cuda_graphs": graphs}
    settings |= {"noise": {"random_length_prob": 0.0}, "deterministic": False}
    results = []
    for implementation in ("auto", "flash_attention_4"):
        attention = {"policy": policy, "block_length": 4, "implementation": implementation}
        folders = {name: tmp_path / implementation / name for name in ("output_dir", "reports", "dst")}
        results.append(train(changed(pretraining, **settings, **folders, attention=attention), seed=1))
    usual, flash = results
    assert flash["attention_fall_backs"] == 0
    assert flash["graphed_shapes"] == (1 if graphs == "auto" else 0)
    assert flash["loss"] == pytest.approx(usual["loss"], rel=2e-2)
