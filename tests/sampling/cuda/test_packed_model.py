"""The packed body computes what the model's own layers compute.

Plain torch stands in for the kernels, so that it runs on a CPU.
"""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

pytest.importorskip("triton")

from qwen3llada.sampling.cuda import packed_model, products
from qwen3llada.sampling.cuda.packed_model import KeyValues, PackedModel, unsupported
from qwen3llada.sampling.cuda.pass_inputs import Stored


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return nn.functional.rms_norm(x, (len(weight),), weight, eps)


def norm_rope(qkv, q_weight, k_weight, positions, angles, eps, heads, store=None) -> Tensor:
    assert store is None
    queries, keys, _ = split(qkv, heads)
    cos, sin = (torch.cat([table[positions]] * 2, -1)[None] for table in angles)
    rotated = apply_rotary_pos_emb(
        rms_norm(queries, q_weight, eps).transpose(0, 1)[None],
        rms_norm(keys, k_weight, eps).transpose(0, 1)[None],
        cos,
        sin,
    )
    return torch.cat([x[0].transpose(0, 1).flatten(1) for x in rotated], 1)


def split(qkv: Tensor, heads) -> list[Tensor]:
    """Queries, keys and values, each [N, heads, E]."""
    sizes = [heads.queries * heads.size, heads.keys * heads.size, heads.keys * heads.size]
    return [x.unflatten(1, (-1, heads.size)) for x in qkv.split(sizes, 1)]


def attention(qk, qkv, prefix, ranges, heads, blocks) -> Tensor:
    """Every token sees every token of its unit."""
    units = ranges.shape[1]
    query, key = qk.unflatten(1, (-1, heads.size)).split([heads.queries, heads.keys], 1)
    query, key, value = (x.unflatten(0, (units, -1)).transpose(1, 2) for x in (query, key, split(qkv, heads)[2]))
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


def rotated_attention(qkv, rotary, prefix, ranges, heads, blocks, store, *, stored_first) -> Tensor:
    assert not stored_first  # no unit of these passes reads what another one stores
    return attention(norm_rope(qkv, *rotary, heads, store), qkv, prefix, ranges, heads, blocks)


def gated(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, 1)
    return nn.functional.silu(gate) * up


@pytest.fixture
def plain_kernels(monkeypatch):
    for kernel in (norm_rope, rotated_attention):
        monkeypatch.setattr(packed_model, kernel.__name__, kernel)
    for kernel in (rms_norm, gated):
        monkeypatch.setattr(products, kernel.__name__, kernel)


@pytest.fixture(params=["model", "biased_model"])
def either(request):
    """A model without attention biases, and one with them."""
    return request.getfixturevalue(request.param)


@pytest.mark.usefixtures("plain_kernels")
@torch.no_grad()
def test_the_packed_body_gives_the_states_of_the_layers(either):
    model = either
    model.config.attention_policy = "full"
    tokens = torch.randint(0, 46, (3, 10), generator=torch.Generator().manual_seed(0))
    expected = model.model(input_ids=tokens).last_hidden_state
    names = {name: parameter.clone() for name, parameter in model.named_parameters()}
    packed = PackedModel(model)
    assert unsupported(model) is None
    positions = torch.arange(10, dtype=torch.int32).repeat(3)
    states = packed(tokens, positions, torch.zeros(7, 3, dtype=torch.int32))
    assert torch.allclose(states, expected.flatten(0, 1), atol=1e-5)
    some = torch.tensor([4, 29])
    chosen = packed(tokens, positions, torch.zeros(7, 3, dtype=torch.int32), rows=some)
    assert torch.allclose(chosen, expected.flatten(0, 1)[some], atol=1e-5)
    assert all(torch.equal(names[name], parameter) for name, parameter in model.named_parameters())
    assert torch.equal(model.model(input_ids=tokens).last_hidden_state, expected)


def test_units_of_a_step_read_nothing_that_the_same_pass_stores():
    """So norm, rotary embedding, storing and attention may be one kernel."""
    memory = KeyValues([torch.zeros(3, 8, 2, 16)], [torch.zeros(3, 8, 2, 16)])
    assert not Stored(2, 4, memory, torch.device("cpu")).write.read


@torch.no_grad()
def test_packed_biases_are_views_of_one_tensor(biased_model):
    """So a change in place to the model's biases also changes what the graphs compute."""
    heads, layer = biased_model.model.layers[0].self_attn, PackedModel(biased_model).layers[0]
    joined = torch.cat([heads.q_proj.bias, heads.k_proj.bias, heads.v_proj.bias])
    assert torch.equal(layer.qkv_bias, joined)
    heads.k_proj.bias.mul_(2)
    assert torch.equal(layer.qkv_bias[len(heads.q_proj.bias) :][: len(heads.k_proj.bias)], heads.k_proj.bias)
    heads.k_proj.bias.div_(2)
    assert layer.out_bias.data_ptr() == heads.o_proj.bias.data_ptr()


def test_biases_that_are_not_qwen3s_are_refused(biased_model):
    layer = biased_model.model.layers[0]
    bias, layer.self_attn.q_proj.bias = layer.self_attn.q_proj.bias, None
    assert "some of q_proj, k_proj and v_proj have a bias" in unsupported(biased_model)
    layer.self_attn.q_proj.bias = bias
    layer.mlp.down_proj.bias = nn.Parameter(torch.zeros(32))
    assert unsupported(biased_model) == "an MLP has biases"
    layer.mlp.down_proj.bias = None
