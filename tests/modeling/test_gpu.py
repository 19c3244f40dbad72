"""Checks that need a GPU: FlexAttention, the flash kernel, and rows without a visible key in the fast kernels."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.modeling.attention import POLICIES, attention_bias
from qwen3llada.modeling.masks import block_mask

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BATCH, LENGTH, BLOCK = 3, 300, 32  # not a multiple of FlexAttention's tiles of 128
PROMPTS = [0, 70, 131]


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3LLadaConfig(vocab_size=128, **sizes, **heads, mask_token_id=127, initializer_range=0.1)
    return Qwen3LLadaForMaskedLM(config).eval().cuda()


@pytest.fixture
def tokens():
    return torch.randint(0, 127, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1)).cuda()


@pytest.fixture
def prompts():
    return torch.tensor(PROMPTS).cuda()


@pytest.fixture
def valid():
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[0, 200:] = mask[1, :50] = False
    return mask.cuda()


def logits(model, implementation, tokens, mask, positions):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(tokens, attention_mask=mask, position_ids=positions).logits


def test_flex_attention_agrees_with_sdpa_for_every_form_of_a_mask(model, tokens, prompts, valid):
    positions = torch.arange(LENGTH).cuda().expand(BATCH, -1)
    for policy in POLICIES:
        for padding in (None, valid):
            visible = attention_bias(policy, prompts, LENGTH, BLOCK, padding, dtype=torch.bool)
            expected = logits(model, "sdpa", tokens, visible, positions)
            bias = attention_bias(policy, prompts, LENGTH, BLOCK, padding)
            tiles = block_mask(policy, prompts, LENGTH, BLOCK, padding)
            forms = [visible, bias, tiles] + ([padding] if policy == "full" else [])
            real = valid if padding is not None else torch.ones_like(valid)
            for form in forms:
                given = logits(model, "flex_attention", tokens, form, positions)
                assert given.isfinite().all()
                assert (given - expected)[real].abs().max() <= 2e-3, (policy, type(form))  # TF32 in FlexAttention


def test_every_position_sees_every_other_under_flex_attention(model, tokens):
    model.set_attn_implementation("flex_attention")
    embeddings = model.get_input_embeddings()(tokens).detach().requires_grad_()
    output = model.model(inputs_embeds=embeddings).last_hidden_state
    (gradient,) = torch.autograd.grad(output[:, 0].square().sum(), embeddings)
    assert (gradient.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_mask_reaches_the_flash_kernel(model, tokens, dtype):
    """With all other kernels disabled, sdpa raises if flash attention cannot run, for example with a mask tensor."""
    model.to(dtype).set_attn_implementation("sdpa")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        output = model.train()(tokens).logits
        output.float().square().mean().backward()
        with pytest.raises(RuntimeError, match="No available kernel"):
            model(tokens, attention_mask=torch.ones_like(tokens))
    moved = tokens.clone()
    moved[:, -1] = (moved[:, -1] + 1) % 127
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert (model(moved).logits[:, 0] != model(tokens).logits[:, 0]).any()


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [(name, dtype) for name in ("eager", "sdpa") for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    + [("flex_attention", torch.bfloat16)],  # compiled for each
)
def test_a_query_that_sees_nothing_gives_finite_numbers_and_gradients(model, tokens, valid, implementation, dtype):
    valid[2] = False
    pairs = (valid[:, None, :] & valid[:, :, None])[:, None]
    additive = torch.zeros(pairs.shape, device="cuda").masked_fill(~pairs, -torch.inf)
    model.to(dtype).set_attn_implementation(implementation)
    for mask in (valid, pairs, additive):
        model.zero_grad()
        output = model(tokens, attention_mask=mask).logits
        output.float().square().mean().backward()
        assert output.isfinite().all()
        assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_a_compiled_body_takes_a_new_block_mask_without_compiling_again(model, tokens, prompts, valid):
    model.set_attn_implementation("flex_attention")
    torch.compiler.reset()
    body = torch.compile(model.model, fullgraph=True)
    for step in range(3):
        tiles = block_mask("block", (prompts + 7 * step), LENGTH, BLOCK, valid)
        if step == 1:  # the first step compiles; from the second on nothing may
            torch._dynamo.config.error_on_recompile = True
        try:
            given = body(input_ids=tokens, attention_mask=tiles).last_hidden_state
        finally:
            torch._dynamo.config.error_on_recompile = False
        given.square().mean().backward()
        expected = model.model(input_ids=tokens, attention_mask=tiles).last_hidden_state
        assert (given - expected)[valid].abs().max() <= 2e-3
