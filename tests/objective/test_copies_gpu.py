"""Block diffusion on a GPU: FlexAttention's tiles against dense masks, compiled and with fused attention."""

import pytest
import torch

from tests.objective.objective_steps import make_model
from tests.objective.test_copies import PLANS, TASKS, batch_of, loss_of, settings_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("policy", PLANS)
@pytest.mark.parametrize("task", TASKS)
def test_flex_equals_dense(policy, task, monkeypatch):
    """Loss and gradients in float32, and the loss in bfloat16 to its rounding."""
    torch._dynamo.reset()  # else the layers of earlier cases count towards the limit, beyond which nothing is compiled
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    from dataclasses import replace

    from qwen3llada.objective.objective import MaskedDiffusionObjective
    from qwen3llada.training.cuda.fused_attention import fuse_attention

    settings = settings_of(task, policy, 4, views=2)
    batch, found = batch_of(task, settings), {}
    for name in ("sdpa", "flex_attention", "fused"):
        model = make_model(head_dim=16).cuda()
        loss = loss_of(settings, model, implementation="sdpa" if name == "sdpa" else "flex_attention")
        loss = replace(loss, device=torch.device("cuda"))
        if name == "fused":
            fuse_attention(model)
        if name != "sdpa":
            for layer in model.model.layers:
                layer.forward = torch.compile(layer.forward)
        objective = MaskedDiffusionObjective(model)
        whole = loss(objective, batch)
        whole.total.backward()
        with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
            half = loss(objective, batch)
        found[name] = whole.cross_entropy, half.cross_entropy, [p.grad for p in model.parameters()]
    exact, rounded, gradients = found["sdpa"]
    for name in ("flex_attention", "fused"):
        whole, half, others = found[name]
        # Products of float32 are in TF32. The message names the kernel, and shows which positions differ.
        assert (whole - exact).abs().max() <= 2e-2, (name, (whole - exact).tolist())
        assert (half - rounded).abs().max() <= 3e-2, (name, (half - rounded).tolist(), (rounded - exact).tolist())
        for one, other in zip(gradients, others, strict=True):
            assert (one - other).norm() <= 2e-2 * one.norm() + 1e-4, name
