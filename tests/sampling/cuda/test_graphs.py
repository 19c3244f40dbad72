"""CUDA graphs give the tokens of the eager sampler."""

import pytest
import torch
from vocabulary import MASK

from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import POLICIES
from qwen3llada.sampling.sampler import SampleParams, generate, infill, stream

SETTINGS = [
    {},
    {"cfg_scale": 1.5},
    {"temperature": 0.7, "remasking": "random_topk"},
    {"unmask": "threshold", "confidence_threshold": 0.4},
    {"remasking": "entropy"},
    {"remasking": "margin", "cfg_scale": 1.0, "unmask": "threshold", "confidence_threshold": 0.4},
]
CASES = [(policy, setting) for policy in POLICIES for setting in SETTINGS]
CASES += [("full", {"cache": "dual"}), ("full", {"cache": "dual", "cfg_scale": 1.0})]
CASES += [("block", setting | {"parallel_blocks": True}) for setting in SETTINGS]

UNKNOWN = [{"unmask": "factor"}, {"unmask": "entropy_bound"}]
UNKNOWN += [{"position_temperature": 0.5}, {"edit_threshold": 0.5}, {"remask": 1}]


@pytest.fixture
def cuda_model(model):
    yield model.cuda()
    model.cpu()


@pytest.fixture
def biased_cuda_model(biased_model):
    yield biased_model.cuda()
    biased_model.cpu()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGpu:
    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("setting", [{}, {"cfg_scale": 1.5, "unmask": "threshold", "confidence_threshold": 0.4}])
    def test_attention_biases(self, biased_cuda_model, policy, setting):
        """Prefix, own block and guidance, with biases on queries, keys, values and output."""
        model = biased_cuda_model
        model.config.attention_policy, model.config.window_blocks = policy, 1
        params = SampleParams(steps=9, gen_length=14, block_length=4, **setting)
        prompts = [[1, 2, 3, 4, 5, 6, 7], [4, 5], list(range(20))]
        eager = generate(model, prompts, params.model_copy(update={"backend": "eager"}), seed=3)
        graph = generate(model, prompts, params, seed=3)
        assert graph.backend == "graph"
        assert torch.equal(graph.canvas, eager.canvas)

    def test_biases_changed_in_place_are_seen(self, biased_cuda_model):
        """The packed biases are the model's own."""
        model = biased_cuda_model
        model.config.attention_policy = "full"
        params = SampleParams(steps=8, gen_length=8, block_length=4)
        before = generate(model, [[1, 2]], params).canvas
        biases = [parameter for name, parameter in model.named_parameters() if name.endswith("proj.bias")]
        with torch.no_grad():
            kept = [bias.clone() for bias in biases]
            for bias in biases:
                bias.neg_()
        changed = generate(model, [[1, 2]], params).canvas
        eager = generate(model, [[1, 2]], params.model_copy(update={"backend": "eager"})).canvas
        with torch.no_grad():
            for bias, value in zip(biases, kept, strict=True):
                bias.copy_(value)
        assert torch.equal(changed, eager)
        assert torch.equal(generate(model, [[1, 2]], params).canvas, before)

    @pytest.mark.parametrize(("policy", "setting"), CASES)
    def test_graphs_give_the_tokens_of_the_eager_sampler(self, cuda_model, policy, setting):
        cuda_model.config.attention_policy, cuda_model.config.window_blocks = policy, 1
        generator = torch.Generator().manual_seed(len(setting))
        for rows in (1, 3, 5):
            prompts = [
                torch.randint(0, 46, (int(n),), generator=generator).tolist()
                for n in torch.randint(1, 24, (rows,), generator=generator)
            ]
            params = SampleParams(steps=9, gen_length=14, block_length=4, **setting)
            eager = generate(cuda_model, prompts, params.model_copy(update={"backend": "eager"}), seed=3)
            graph = generate(cuda_model, prompts, params, seed=3)
            assert graph.backend == "graph"
            assert torch.equal(graph.canvas, eager.canvas)
            assert [a.tolist() for a in graph.tokens] == [a.tolist() for a in eager.tokens]

    @pytest.mark.parametrize("knobs", UNKNOWN)
    def test_knobs_without_a_graph_are_decoded_eagerly(self, cuda_model, knobs):
        cuda_model.config.attention_policy = "full"
        params = SampleParams(steps=9, gen_length=14, block_length=4, **knobs)
        eager = generate(cuda_model, [[1, 2, 3]], params.model_copy(update={"backend": "eager"}), seed=3)
        auto = generate(cuda_model, [[1, 2, 3]], params, seed=3)
        assert auto.backend == "eager"
        assert torch.equal(auto.canvas, eager.canvas)
        with pytest.raises(InputError, match=r"backend=graph cannot be used: .* has no graph"):
            generate(cuda_model, [[1, 2, 3]], params.model_copy(update={"backend": "graph"}), seed=3)

    def test_noise_is_the_same_on_every_device(self, model):
        params = SampleParams(steps=9, gen_length=14, block_length=4, temperature=0.9, remasking="random_topk")
        prompts = [[1, 2, 3], [4, 5]]
        there = generate(model.cpu(), prompts, params, seed=9).canvas
        here = generate(model.cuda(), prompts, params, seed=9).canvas
        model.cpu()
        assert torch.equal(there, here.cpu())

    def test_infilling_and_long_prompts(self, cuda_model):
        cuda_model.config.attention_policy = "block"
        params = SampleParams(steps=8, gen_length=7, block_length=3)
        texts = [[1, 2, MASK, MASK, 4, 5, MASK, 7], [9, MASK, 3]]
        eager = infill(cuda_model, texts, params.model_copy(update={"backend": "eager"}))
        assert torch.equal(infill(cuda_model, texts, params).canvas, eager.canvas)

    def test_steps_are_seen(self, cuda_model):
        cuda_model.config.attention_policy = "full"
        params = SampleParams(steps=8, gen_length=8, block_length=4)
        left = [int((step.canvas == MASK).sum()) for step in stream(cuda_model, [[1, 2]], params, eos_token_ids=())]
        assert left == [7, 6, 5, 4, 3, 2, 1, 0]

    def test_weights_that_move_are_noticed(self, cuda_model):
        cuda_model.config.attention_policy = "full"
        params = SampleParams(steps=8, gen_length=8, block_length=4)
        before = generate(cuda_model, [[1, 2]], params).canvas
        cuda_model.cpu().cuda()
        assert torch.equal(generate(cuda_model, [[1, 2]], params).canvas, before)

    def test_a_generation_in_between_is_an_error(self, cuda_model):
        cuda_model.config.attention_policy = "full"
        params = SampleParams(steps=8, gen_length=8, block_length=4)
        steps = stream(cuda_model, [[1, 2]], params, eos_token_ids=())
        next(steps)
        generate(cuda_model, [[3]], params)
        with pytest.raises(RuntimeError, match="another generation with this model began"):
            list(steps)


def test_graphs_asked_for_where_there_is_no_gpu(model):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="backend=graph cannot be used: the model is on cpu"):
        generate(model, [[1]], SampleParams(steps=8, gen_length=8, backend="graph"))


@pytest.mark.parametrize("knobs", [{}, {"unmask": "threshold"}, *UNKNOWN])
def test_knobs_without_a_graph_are_named(knobs):
    pytest.importorskip("triton")
    from qwen3llada.sampling.cuda.sampler import unknown_knob

    said = unknown_knob(SampleParams(**knobs))
    if knobs in UNKNOWN:
        ((name, value),) = knobs.items()
        assert said is not None
        assert said.startswith(f"{name}={value} has no graph; ")
    else:
        assert said is None
