"""Kernels that start before the one before them has ended change no bit of what a generation gives."""

import pytest
import torch

pytest.importorskip("triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("batch", "block_length"), [(1, 32), (1, 4), (8, 32)])
def test_the_same_tokens_without_an_early_start(batch, block_length, monkeypatch):
    from bench.sample import make_model
    from qwen3llada.sampling.cuda import attention_few_rows, product_kernels, program_cache
    from qwen3llada.sampling.sampler import SampleParams, stream

    model = make_model("cuda", torch.bfloat16)
    model.model.layers = model.model.layers[:4]
    model.config.attention_policy = "block_causal"
    prompts = torch.randint(1000, (batch, 100), generator=torch.Generator().manual_seed(0)).tolist()
    params = SampleParams(block_length=block_length, gen_length=64, steps=64, backend="graph")

    def generation():
        program_cache._of_models.pop(model, None)  # captured anew
        steps = [(step.canvas.clone(), step.confidence.clone()) for step in stream(model, prompts, params)]
        return [torch.stack(values) for values in zip(*steps, strict=True)]

    early = generation()
    for module in (product_kernels, attention_few_rows):
        monkeypatch.setattr(module, "overlaps", lambda like: False)
    for found, expected in zip(early, generation(), strict=True):
        assert torch.equal(found, expected)


def test_kernels_on_a_cpu_start_one_after_the_other():
    from qwen3llada.sampling.cuda.kernel_overlap import launch_options, overlaps

    assert not overlaps(torch.zeros(1, dtype=torch.bfloat16))
    assert launch_options(False) == {}
