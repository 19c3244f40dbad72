"""What the sampler's kernel stores of keys and values, against plain torch: in Triton's interpreter, and on a GPU."""

import pytest
import torch

pytest.importorskip("triton")


def compare_stored(device):
    """Units store all, none and some of their tokens, where each says; all else stays as it was."""
    from qwen3llada.sampling.cuda.layer_kernels import Angles, Heads, Store, norm_rope
    from tests.sampling.cuda import plain_kernels

    heads, generator = Heads(4, 2, 16), torch.Generator().manual_seed(0)
    qkv, angle = torch.randn(12, 8 * 16, generator=generator), torch.rand(30, 8, generator=generator)
    positions = torch.tensor([3, 4, 5, 6, 0, 0, 0, 0, 20, 21, 22, 23], dtype=torch.int32)
    norms, firsts, counts = torch.rand(2, 16, generator=generator), torch.tensor([7, 0, 19]), torch.tensor([4, 0, 2])

    def stored(of, where):
        memory = [torch.full((2, 12, 2, 16), -1.0, device=where) for _ in range(2)]
        own = Store(*memory, firsts.to(where), counts.to(where))
        arguments = (x.to(where) for x in (qkv, *norms, positions))
        out = of(*arguments, Angles(angle.cos().to(where), angle.sin().to(where)), 1e-6, heads, own)
        return [x.cpu() for x in (out, *memory)]

    found, expected = stored(norm_rope, device), stored(plain_kernels.norm_rope, "cpu")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for memory in found[1:]:
        untouched = (memory.flatten(0, 1) == -1).all(-1).all(-1).nonzero()[:, 0].tolist()
        assert untouched == [*range(7), *range(11, 19), 21, 22, 23]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_keys_and_values_are_stored_on_a_gpu():
    compare_stored("cuda")
