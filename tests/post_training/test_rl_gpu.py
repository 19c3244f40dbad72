"""Post-training on a GPU: rollouts run as CUDA graphs of the present weights, and compiled layers change nothing."""

import pytest
import torch
from runs import changed, elsewhere
from tiny_settings import WORDS, write_model

from qwen3llada.post_training.params import RlParams
from qwen3llada.post_training.sampling_copy import SamplingCopy
from qwen3llada.post_training.task import Rewarded, post_train
from qwen3llada.report.data import read_curves
from qwen3llada.sampling.sampler import generate
from qwen3llada.training.start.start import start

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
PROMPTS = [[1, 2, 3], [4, 5], list(range(9))]


@pytest.fixture
def on_gpu(params, tmp_path) -> RlParams:
    """Heads that all attention kernels support, and lengths with few shapes."""
    write_model(tmp_path / "wide", hidden_size=128, intermediate_size=256, head_dim=64, max_position_embeddings=128)
    return changed(
        params, model=tmp_path / "wide", max_length=128, pad_to_multiple_of=64, deterministic=False, optim={"lr": 1e-3}
    )


@pytest.mark.parametrize("policy", ["full", "block_causal"])
@pytest.mark.parametrize("bf16", [True, False])
def test_graphs_see_weights_that_training_changed_in_place(on_gpu, policy, bf16):
    """The same graphs, replayed after the weights were copied anew, give the tokens of graphs made afterwards."""
    from qwen3llada.sampling.cuda.program_cache import Graphs

    params = changed(on_gpu, attention={"policy": policy, "block_length": 4}, bf16=bf16)
    run = start(params, seed=1, template="plain", task=Rewarded(params))
    copy, decode = SamplingCopy(run), params.rollout

    def answers(copy: SamplingCopy) -> torch.Tensor:
        generation = generate(copy.refresh(run).model, PROMPTS, decode, seed=3, eos_token_ids=())
        assert generation.backend == "graph"
        return generation.canvas

    before, graphs = answers(copy), Graphs.of(copy.text.model)
    with torch.no_grad():
        for parameter in run.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = answers(copy)
    assert Graphs.of(copy.text.model) is graphs
    assert not torch.equal(after, before)
    assert torch.equal(after, answers(SamplingCopy(run)))
    assert int(after.max()) <= WORDS + 7


@pytest.mark.parametrize("policy", ["full", "block_causal"])
def test_compiled_layers_give_the_curves_of_those_that_are_not(on_gpu, tmp_path, policy):
    """Micro-batches are filled up to one shape, also where no rollout has a gradient, and stay finite."""
    plain = changed(on_gpu, attention={"policy": policy, "block_length": 4}, method="trace", compile="never")
    assert not post_train(plain, seed=1, template="plain")["compiled"]
    compiled = elsewhere(plain, tmp_path / "compiled", compile="auto")
    assert post_train(compiled, seed=1, template="plain")["compiled"]
    for name in ("train/reward", "train/grad_norm"):
        first, second = ([v for _, v in read_curves(params.reports)[name]][:2] for params in (plain, compiled))
        assert second == pytest.approx(first, rel=0.02, abs=1e-4)
    half = elsewhere(compiled, tmp_path / "half", bf16=True, kl=0.1)
    summary = post_train(half, seed=1, template="plain")
    assert summary["steps"] == half.max_steps
