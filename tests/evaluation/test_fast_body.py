"""The states of the model's own layers, under every form of mask. Plain torch stands in for the kernels of a GPU."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from qwen3llada.evaluation.fast_body import PackedBody, PlainBody, fast_body
from qwen3llada.evaluation.likelihood import nelbo
from qwen3llada.sampling.cuda import attention_kernel, layer_kernels
from qwen3llada.sampling.cuda.attention_ranges import Range
from tests.objective.objective_steps import make_model
from tests.sampling.cuda.test_packed_model import gated, norm_rope, rms_norm, split

ROWS, LENGTH = 3, 10


@pytest.fixture(params=[False, True], ids=["no biases", "biases"])
def model(request):
    model = make_model(attention_bias=request.param).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def some_mask(rows, seed):
    seen = torch.rand(rows, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(seed)) < 0.6
    return seen | torch.eye(LENGTH, dtype=torch.bool)


def attention(qk, qkv, prefix, ranges, heads):
    """Every token of a row sees the first keys of the row."""
    assert prefix is None
    assert not ranges[: Range.OWN_HIGH].any()
    assert not ranges[Range.OWNER :].any()
    query, key = qk.unflatten(1, (-1, heads.size)).split([heads.queries, heads.keys], 1)
    parts = (x.unflatten(0, (ranges.shape[1], -1)).transpose(1, 2) for x in (query, key, split(qkv, heads)[2]))
    query, key, value = parts
    mask = (torch.arange(key.shape[2]) < ranges[Range.OWN_HIGH][:, None])[:, None, None]
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


@pytest.mark.parametrize("kind", [PackedBody, PlainBody])
@pytest.mark.parametrize("form", ["none", "of keys", "of all rows", "by row", "by type"])
@torch.no_grad()
def test_the_states_are_those_of_the_layers(model, form, kind, monkeypatch):
    for kernel in (rms_norm, norm_rope, gated):
        monkeypatch.setattr(layer_kernels, kernel.__name__, kernel)
    monkeypatch.setattr(attention_kernel, "attention", attention)
    model.config.attention_policy = "full"
    mask = {"none": None, "of all rows": some_mask(1, 0), "by row": some_mask(ROWS, 1)}.get(form)
    if form == "of keys":
        mask = (torch.arange(LENGTH) < torch.tensor([[10], [4], [7]]))[:, None, None]
    if form == "by type":
        monkeypatch.setattr(model.config, "layer_types", ["full_attention", "sliding_attention"])
        mask = {"full_attention": some_mask(ROWS, 2), "sliding_attention": None}
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 46, (ROWS, LENGTH), generator=generator)
    positions = torch.randint(0, 12, (ROWS, LENGTH), generator=generator)
    embedded = model.get_input_embeddings()(tokens)
    expected = model.model(inputs_embeds=embedded, attention_mask=mask, position_ids=positions).last_hidden_state
    chosen = torch.tensor([0, 3, 4, 17, 29])
    found = kind(model)(embedded, mask, positions, chosen)
    torch.testing.assert_close(found, expected.flatten(0, 1)[chosen], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_replaced_is_said_once(caplog):
    config, body = SimpleNamespace(hidden_act="gelu"), torch.nn.Module()
    model = SimpleNamespace(config=config, device=torch.device("cuda"), model=body)
    for _ in range(2):
        with fast_body(model):
            assert not hasattr(model, "predict_states")
    assert [record.message for record in caplog.records] == [
        "likelihoods are computed by the model's own layers, which takes longer: activation gelu is not silu"
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", ["full", "block_causal", ["block_causal", "window"]])
def test_bounds_on_a_gpu_are_those_of_the_layers(model, policy, monkeypatch):
    model.cuda()
    texts = [torch.randint(0, 40, (n,)).tolist() for n in (20, 33, 7)]
    given = {"policy": policy, "block_length": 4, "rounds": 3}
    packed = nelbo(model, texts, **given)
    assert not hasattr(model, "predict_states")
    monkeypatch.setattr("qwen3llada.evaluation.masked_passes.fast_body", lambda model: torch.no_grad())
    plain = nelbo(model, texts, **given)
    assert packed.nats == pytest.approx(plain.nats, rel=1e-4)
