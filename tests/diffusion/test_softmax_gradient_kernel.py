"""The kernel of the loss's gradient against autograd in float64: in Triton's interpreter, and on a GPU."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
# Less than a lane's columns, a part of a step, several steps of which the last is cut short, and whole ones.
VOCABULARIES = [5, 100, 1001, 1024]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def compare(device, dtype, vocabulary, smoothing):
    from qwen3llada.diffusion.softmax_gradient_kernel import softmax_gradient_

    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(7, vocabulary, generator=generator).to(dtype)
    logits[0, 2] = 40.0  # nearly all of the softmax
    targets = torch.randint(vocabulary, (7,), generator=generator)
    targets[:2] = torch.tensor([2, vocabulary - 1])
    sums = torch.promote_types(dtype, torch.float32)
    scale = 5 * torch.rand(7, generator=generator, dtype=sums)
    exact = logits.double().requires_grad_()
    smoothed = F.cross_entropy(exact, targets, reduction="none", label_smoothing=smoothing)
    (expected,) = torch.autograd.grad((scale.double() * smoothed).sum(), exact)
    plain = F.cross_entropy(exact, targets, reduction="none")

    given = logits.to(device)
    losses = softmax_gradient_(given, targets.to(device), scale.to(device), smoothing).cpu()
    assert losses.dtype == sums
    sum_tolerance = min(TOLERANCES[dtype], TOLERANCES[torch.float32])
    wanted = torch.stack((plain, smoothed)).detach()
    torch.testing.assert_close(losses.double(), wanted, rtol=sum_tolerance, atol=sum_tolerance)
    torch.testing.assert_close(given.cpu().double(), expected, rtol=TOLERANCES[dtype], atol=1e-6)


def check(device):
    from qwen3llada.diffusion import softmax_gradient_kernel as module

    lanes = module.LANES
    module.LANES = 32 if device == "cpu" else lanes  # several steps with a small vocabulary
    for vocabulary in VOCABULARIES if device == "cpu" else [*VOCABULARIES, 8 * lanes, 20_001, 151_936]:
        for smoothing in (0.0, 0.1):
            for dtype in TOLERANCES:
                compare(device, dtype, vocabulary, smoothing)
    module.LANES = lanes


CHECKS = [check]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    check("cuda")
