"""FlashAttention-4 on an H100 or H200: output and gradients against dense masks, and whole trainings."""

import pytest
import torch
from runs import changed
from tiny_settings import write_model

from qwen3llada.modeling.masks import Columns, blocks_of_copies, dense_mask, mask_of_shape
from qwen3llada.objective.attention_kernels import has_flash_attention_4
from qwen3llada.training.loop import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9 or not has_flash_attention_4(),
        reason="needs an H100 or H200, and flash-attn-4",
    ),
]
HEADS, KEY_HEADS, DIM = 4, 2, 128


def dense(query, key, value, gradient, visible):
    """Output and gradients of queries, keys and values in float32."""
    given = [x.detach().float().requires_grad_() for x in (query, key, value)]
    keys, values = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in given[1:])
    scores = (given[0] @ keys.transpose(-1, -2) / DIM**0.5).masked_fill(~visible, -torch.inf)
    output = scores.softmax(-1) @ values
    return output, *torch.autograd.grad(output, given, gradient.float())


@pytest.mark.parametrize(
    ("policy", "views", "length", "block", "queries"),
    [
        ("block_causal", 1, 256, 32, None),
        ("block_causal", 1, 200, 48, None),
        ("block_causal", 2, 256, 4, None),
        ("block_causal", 1, 256, 32, 256),
        ("window", 1, 256, 32, None),
    ],
)
def test_equals_dense(policy, views, length, block, queries):
    from torch.nn.attention.flex_attention import flex_attention

    from qwen3llada.training.cuda.fused_attention import kernel_options

    total, device, generator = length * (views + 1), torch.device("cuda"), torch.Generator("cuda").manual_seed(0)
    options = {"dtype": torch.bfloat16, "device": device, "generator": generator}
    query = torch.randn(2, queries or total, HEADS, DIM, **options).transpose(1, 2).requires_grad_()
    key, value = (torch.randn(2, total, KEY_HEADS, DIM, **options).transpose(1, 2).requires_grad_() for _ in range(2))
    gradient = torch.randn(2, queries or total, HEADS, DIM, **options).transpose(1, 2)
    mask = mask_of_shape(policy, 2, length, views, total, block, True, device, queries)
    chosen = kernel_options(query.transpose(1, 2), mask, flash=True)
    assert chosen == {"BACKEND": "FLASH"}
    attend = torch.compile(flex_attention, dynamic=False)
    output = attend(query, key, value, block_mask=mask, enable_gqa=True, kernel_options=chosen)
    found = output, *torch.autograd.grad(output, (query, key, value), gradient)
    blocks = blocks_of_copies(length, views, length, block, device)
    visible = dense_mask(policy, Columns(blocks=blocks, corrupted=length, views=views), 2)[:, :, : queries or total]
    for one, other in zip(found, dense(query, key, value, gradient, visible), strict=True):
        assert (one.float() - other).norm() <= 1e-2 * other.norm()


@pytest.mark.parametrize("graphs", ["never", "auto"])
def test_training(pretraining, tmp_path, graphs):
    """Losses of FlexAttention's own kernels to bfloat16's rounding, by layers' graphs and without."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 128, "num_hidden_layers": 2}
    write_model(tmp_path / "model", **sizes)
    settings = {"model": tmp_path / "model", "max_steps": 6, "logging_steps": 1, "bf16": True, "cuda_graphs": graphs}
    results = {}
    for implementation in ("flex_attention", "flash_attention_4"):
        attention = {"policy": "block_causal", "block_length": 4, "implementation": implementation}
        folders = {name: tmp_path / implementation / name for name in ("output_dir", "reports", "dst")}
        params = changed(
            pretraining,
            **settings,
            **folders,
            attention=attention,
            noise={"random_length_prob": 0.0},
            deterministic=False,
        )
        results[implementation] = train(params, seed=1)
    flash = results["flash_attention_4"]
    assert flash["attention_fall_backs"] == 0
    assert flash["graphed_shapes"] == (1 if graphs == "auto" else 0)
    assert flash["loss"] == pytest.approx(results["flex_attention"]["loss"], rel=2e-2)
