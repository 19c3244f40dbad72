"""The model against Transformers' own Qwen3, and against what a bidirectional model has to do."""

import pytest
import torch
from torch import nn
from transformers import Qwen3Model

from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.modeling.attention import attention_bias

IMPLEMENTATIONS = ["eager", "sdpa"]
TOLERANCE = 1e-5  # maximal difference of logits in float32


def additive(visible):
    return torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)


def close(a, b):
    return (a - b).abs().max() <= TOLERANCE


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, model, qwen3):
    model.set_attn_implementation(request.param)
    qwen3.set_attn_implementation(request.param)
    return request.param


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("form", [lambda visible: visible, additive])
def test_with_a_causal_mask_the_logits_are_those_of_qwen3(model, qwen3, tokens, form):
    causal = torch.ones(1, 1, 11, 11, dtype=torch.bool).tril()
    with torch.no_grad():
        expected, given = qwen3(tokens).logits, model(tokens, attention_mask=form(causal)).logits
        assert close(given, expected)
        assert not close(model(tokens).logits, expected)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("mask", [None, {"full_attention": None}], ids=["none", "dict of none"])
def test_every_position_sees_every_other(model, tokens, mask):
    """The trap: passing `{"full_attention": None}` to Qwen3's own layers is silently causal under sdpa."""
    embeddings = model.get_input_embeddings()(tokens).detach().requires_grad_()
    output = model.model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    for query in range(tokens.shape[1]):
        (gradient,) = torch.autograd.grad(output[:, query].square().sum(), embeddings, retain_graph=True)
        assert (gradient.abs().amax(-1) > 0).all(), f"position {query} is blind to some"


def test_the_trap_is_there_in_qwen3_itself(qwen3, tokens):
    """If this fails, Transformers has changed, and the test above has lost its purpose."""
    qwen3.set_attn_implementation("sdpa")
    moved = tokens.clone()
    moved[:, -1] = (moved[:, -1] + 1) % 96
    masks = {"full_attention": None}
    with torch.no_grad():
        assert torch.equal(
            Qwen3Model.forward(qwen3.model, tokens, attention_mask=masks).last_hidden_state[:, 0],
            Qwen3Model.forward(qwen3.model, moved, attention_mask=masks).last_hidden_state[:, 0],
        )


@pytest.mark.parametrize("training", [False, True])
def test_no_mask_reaches_the_kernel_as_no_mask(model, tokens, training, monkeypatch):
    seen = []
    kernel = nn.functional.scaled_dot_product_attention

    def spy(*args, **kwargs):
        seen.append((kwargs["attn_mask"], kwargs["is_causal"]))
        return kernel(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
    model.set_attn_implementation("sdpa")
    model.train(training)(tokens)
    assert seen == [(None, False)] * model.config.num_hidden_layers


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_unpadded(model, tokens, side):
    lengths = [11, 7, 4]
    mask = torch.zeros(3, 11, dtype=torch.long)
    batch = torch.full((3, 11), 5)
    for row, length in enumerate(lengths):
        columns = slice(11 - length, 11) if side == "left" else slice(0, length)
        mask[row, columns] = 1
        batch[row, columns] = tokens[row, :length]
    with torch.no_grad():
        logits = model(batch, attention_mask=mask).logits
        for row, length in enumerate(lengths):
            assert close(logits[row, mask[row].bool()], model(tokens[row : row + 1, :length]).logits[0])


@pytest.mark.usefixtures("implementation")
def test_all_forms_of_a_mask_agree(model, tokens):
    valid = torch.ones(3, 11, dtype=torch.bool)
    valid[0, 8:] = valid[1, :3] = False
    pairs = valid[:, None, None, :].expand(3, 1, 11, 11)
    forms = [valid, valid.long(), valid.float(), pairs, additive(pairs), valid[:, None, None, :]]
    forms += [{"full_attention": form} for form in forms]
    positions = torch.arange(11).expand(3, -1)
    with torch.no_grad():
        logits = [model(tokens, attention_mask=form, position_ids=positions).logits for form in forms]
    real = valid[..., None].expand_as(logits[0])
    assert all(close(other[real], logits[0][real]) for other in logits[1:])
    assert not close(model(tokens).logits[real], logits[0][real])


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["padding", "boolean", "additive", "lowest"])
def test_a_query_that_sees_nothing_gives_finite_numbers_and_gradients(model, tokens, dtype, form):
    valid = torch.ones(3, 11, dtype=torch.bool)
    valid[0, 5:] = valid[1] = False  # padding behind a text, and a row of padding alone
    pairs = (valid[:, None, :] & valid[:, :, None])[:, None]  # padding queries see nothing at all
    lowest = torch.zeros(3, 1, 11, 11).masked_fill(~pairs, torch.finfo(torch.float32).min)
    mask = {"padding": valid, "boolean": pairs, "additive": additive(pairs), "lowest": lowest}[form]
    logits = model.to(dtype)(tokens, attention_mask=mask).logits
    assert logits.isfinite().all()
    logits.float().square().mean().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.usefixtures("implementation")
def test_an_additive_mask_may_hold_any_bias(model, tokens):
    """Values between 0 and -inf reach the scores: a strong bias to one key is not the same as none."""
    bias = torch.zeros(3, 1, 11, 11)
    bias[..., 4] = 3.0
    with torch.no_grad():
        assert not close(model(tokens, attention_mask=bias).logits, model(tokens).logits)


class Prefix:
    """Keys and values of a prefix, read-only; None as long as they are being recorded."""

    def __init__(self, layers=None):
        self.layers, self.recorded = layers, {}

    def get_seq_length(self, layer_idx=0):
        return 0 if self.layers is None else self.layers[0][0].shape[2]

    def update(self, keys, values, layer_idx, *args, **kwargs):
        self.recorded[layer_idx] = (keys, values)
        if self.layers is None:
            return keys, values
        return tuple(torch.cat(pair, dim=2) for pair in zip(self.layers[layer_idx], (keys, values), strict=True))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("padded", [False, True])
def test_a_prefix_of_keys_and_values_replaces_its_tokens(model, tokens, padded):
    """Under `block` the prompt does not see the answer, so its keys and values can be computed once."""
    prompt, length = 5, 11
    valid = torch.ones(3, length, dtype=torch.bool)
    valid[1, : 2 if padded else 0] = False
    positions = (valid.long().cumsum(-1) - 1).clamp(min=0)
    bias = attention_bias("block", torch.full((3,), prompt), length, length - prompt, valid)
    with torch.no_grad():
        expected = model(tokens, attention_mask=bias, position_ids=positions).logits[:, prompt:]
        record = Prefix()
        model(tokens[:, :prompt], attention_mask=valid[:, :prompt], past_key_values=record)
        prefix = Prefix([record.recorded[i] for i in range(3)])
        pairs = valid[:, None, None, :].expand(3, 1, length - prompt, length)
        masks = [valid, pairs, additive(pairs)] if padded else [None, valid, pairs, additive(pairs)]
        for mask in masks:
            answer = {"past_key_values": prefix, "position_ids": positions[:, prompt:], "attention_mask": mask}
            assert close(model(tokens[:, prompt:], **answer).logits, expected)
        by_default = model(tokens[:, prompt:], past_key_values=prefix, attention_mask=valid).logits
        assert close(by_default, expected)  # positions counted from the padding mask


@pytest.mark.usefixtures("implementation")
def test_gradient_checkpointing_changes_nothing(model, tokens):
    valid = torch.ones(3, 11, dtype=torch.bool)
    valid[1, 7:] = False
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        model(tokens, attention_mask=valid).logits.square().mean().backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("form", ["none", "padding", "additive"])
def test_the_body_compiles_without_graph_breaks(model, tokens, form):
    valid = torch.ones(3, 11, dtype=torch.bool)
    valid[1, 7:] = False
    pairs = valid[:, None, None, :].expand(3, 1, 11, 11)
    mask = {"none": None, "padding": valid, "additive": additive(pairs)}[form]
    torch.compiler.reset()
    body = torch.compile(model.model, fullgraph=True, backend="eager")
    with torch.no_grad():
        compiled = body(input_ids=tokens, attention_mask=mask).last_hidden_state
        assert close(compiled, model.model(input_ids=tokens, attention_mask=mask).last_hidden_state)


def test_each_type_of_layer_can_have_a_mask_of_its_own(sizes, tokens):
    """The first layer sees everything, the others only their own position: a change elsewhere moves only the first."""
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    model = Qwen3LLadaForMaskedLM(Qwen3LLadaConfig(**sizes, mask_token_id=96, layer_types=types)).eval()
    alone = torch.eye(11, dtype=torch.bool)[None, None]
    moved = tokens.clone()
    moved[:, -1] = (moved[:, -1] + 1) % 96

    def difference(full, sliding):
        masks = {"full_attention": full, "sliding_attention": sliding}
        with torch.no_grad():
            logits = [model(ids, attention_mask=masks).logits[:, 0] for ids in (tokens, moved)]
        return (logits[0] - logits[1]).abs().max()

    assert difference(alone, alone) == 0
    assert difference(None, alone) > 0
    assert difference(alone, None) > 0


def test_labels_are_of_the_same_position(model, tokens):
    """Logits are not shifted by one, unlike in a causal model."""
    with torch.no_grad():
        output = model(tokens, labels=tokens)
    expected = nn.functional.cross_entropy(output.logits.flatten(0, 1), tokens.flatten())
    assert torch.allclose(output.loss, expected)


def test_hidden_states_can_be_asked_for(model, tokens):
    with torch.no_grad():
        output = model(tokens, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)


def test_wrong_masks_are_refused(model, tokens):
    from torch.nn.attention.flex_attention import create_block_mask

    everything = create_block_mask(lambda b, h, q, k: q >= 0, B=3, H=None, Q_LEN=11, KV_LEN=11, device="cpu")
    for mask, message in [
        (torch.ones(3, 10), r"shape \(3, 1, 1, 10\) but must be"),
        (torch.ones(2, 1, 11, 11), "must be"),
        (torch.ones(3, 11, 11), "must be"),
        (torch.ones(3, 1, 11, 11, dtype=torch.long), "boolean or floating point"),
        ({"sliding_attention": None}, r"must have \['full_attention'\]"),
        (everything, "a BlockMask needs attention implementation flex_attention"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(tokens, attention_mask=mask)
    with pytest.raises(ValueError, match="is_causal=True must be False"):
        model(tokens, is_causal=True)
    with pytest.raises(ValueError, match="input_ids=None"):
        model()


def test_it_does_not_decode_left_to_right(model, tokens):
    assert not model.can_generate()
    with pytest.raises(NotImplementedError, match="sampler"):
        model.generate(tokens)


@pytest.mark.parametrize(
    ("device", "queries", "options"), [("cuda", 127, {"BACKEND": "TRITON"}), ("cuda", 128, {}), ("cpu", 127, {})]
)
def test_short_passes_on_a_gpu_avoid_flex_attentions_kernel_for_decoding(device, queries, options):
    from unittest.mock import Mock

    from torch.nn.attention.flex_attention import BlockMask

    from qwen3llada.modeling.modeling_qwen3llada import flex_options

    mask = Mock(spec=BlockMask, kv_indices=Mock(device=torch.device(device)))
    assert flex_options(mask, queries) == options
    assert flex_options(None, queries) == flex_options(torch.ones(1, 1, 2, 2), queries) == {}


def test_flex_attentions_options_reach_each_layer(model, monkeypatch):
    """Also the last layer where it is shortened, whose queries are fewer than the other layers'."""
    from qwen3llada.modeling import modeling_qwen3llada
    from qwen3llada.objective import last_layer

    given = []
    model.set_attn_implementation("eager")

    def attend(module, query, key, value, mask, kernel_options=None, **kwargs):
        given.append((query.shape[2], kernel_options))
        return query.transpose(1, 2), None

    last_layer.shorten_last_layer(model)
    for module in (modeling_qwen3llada, last_layer):
        monkeypatch.setattr(module, "flex_options", lambda mask, queries: {"queries": queries})
    monkeypatch.setattr("transformers.models.qwen3.modeling_qwen3.eager_attention_forward", attend)
    monkeypatch.setattr(last_layer, "eager_attention_forward", attend)
    model.model(torch.ones(1, 6, dtype=torch.long), kept=4)
    assert given == [(6, {"queries": 6}), (6, {"queries": 6}), (4, {"queries": 4})]


def test_options_for_one_kind_of_mask_are_enough(model, monkeypatch):
    """In a layered plan only some layers may have a block mask, which need not be the first."""
    from qwen3llada.modeling import modeling_qwen3llada

    given, masked = [], torch.ones(1, 1, 6, 6, dtype=torch.bool)
    model.set_attn_implementation("eager")
    model.config.layer_types = ["full_attention", "sliding_attention", "sliding_attention"]

    def attend(module, query, key, value, mask, kernel_options=None, **kwargs):
        given.append(kernel_options)
        return query.transpose(1, 2), None

    monkeypatch.setattr("transformers.models.qwen3.modeling_qwen3.eager_attention_forward", attend)
    monkeypatch.setattr(modeling_qwen3llada, "flex_options", lambda mask, queries: {} if mask is None else {"a": 1})
    for first, second in ((None, masked), (masked, None)):
        masks = {"full_attention": first, "sliding_attention": second}
        model.model(torch.ones(1, 6, dtype=torch.long), attention_mask=masks)
    assert given == [{"a": 1}] * 6
