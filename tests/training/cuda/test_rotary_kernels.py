"""The kernel of norm and rotation against Transformers' formulas: in Triton's interpreter, and on a GPU."""

import pytest
import torch

pytest.importorskip("triton")
EPS = 1e-6
SHAPES = [(2, 5, 3, 8), (1, 40, 4, 32), (3, 37, 16, 128)]  # batch, length, heads, head size


def inputs(shape, *, shared, dtype=torch.float32):
    """x, weight, cos, sin, and a gradient with the memory layout that attention returns."""
    batch, length, heads, size = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x, weight = torch.randn(shape, generator=generator), torch.randn(size, generator=generator)
    angles = torch.randn(1 if shared else batch, length, size // 2, generator=generator)
    angles = torch.cat((angles, angles), dim=-1)
    grad = torch.randn(batch, heads, length, size, generator=generator).transpose(1, 2)
    return x.to(dtype), weight, angles.cos(), angles.sin(), grad.to(dtype)


def expected(x, weight, cos, sin, grad):
    """In float64: the result and the gradients of x and weight."""
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

    x, cos, sin, grad = (tensor.detach().double() for tensor in (x, cos, sin, grad))
    x.requires_grad_()
    norm = Qwen3RMSNorm(x.shape[-1], EPS).to(x)
    norm.weight.data.copy_(weight)
    # Qwen3's norm computes in float32 for any input
    normed = norm.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS))
    torch.testing.assert_close(normed, norm(x), rtol=1e-5, atol=1e-5)
    out, _ = apply_rotary_pos_emb(normed, normed, cos, sin, unsqueeze_dim=2)
    out.backward(grad)
    return out.detach(), x.grad, norm.weight.grad


def interpret():
    """Run the kernels in the interpreter and compare. Needs its own process, because Triton decides at import."""
    from qwen3llada.training.cuda import rotary_kernels as kernels

    for shape, shared in ((SHAPES[0], True), (SHAPES[0], False), (SHAPES[1], False)):
        x, weight, cos, sin, grad = inputs(shape, shared=shared)
        out, grad_x = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
        parts = torch.full((kernels.programs_for(x), x.shape[-1]), torch.nan)
        kernels.launch_forward(kernels._forward, x, weight, cos, sin, out, EPS)
        kernels.launch_backward(kernels._backward, grad, x, weight, cos, sin, grad_x, parts, EPS)
        found = tuple(tensor.double() for tensor in (out, grad_x, parts.sum(0)))
        torch.testing.assert_close(found, expected(x, weight, cos, sin, grad), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_kernels_compute_transformers_formulas_on_a_gpu(dtype, tolerance, compiled):
    from qwen3llada.training.cuda.rotary_kernels import norm_rotate

    run = torch.compile(norm_rotate) if compiled else norm_rotate
    for shape in SHAPES:
        for shared in (True, False):
            x, weight, cos, sin, grad = (t.cuda() for t in inputs(shape, shared=shared, dtype=dtype))
            leaf, leaf_weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
            out = run(leaf, leaf_weight, cos, sin, EPS)
            out.backward(grad)
            assert (out.dtype, leaf.grad.dtype, leaf_weight.grad.dtype) == (dtype, dtype, torch.float32)
            right = expected(x, weight, cos, sin, grad)
            for found, wanted in zip((out, leaf.grad, leaf_weight.grad), right, strict=True):
                assert (found.double() - wanted).norm() <= tolerance * wanted.norm()
