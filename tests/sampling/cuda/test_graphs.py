"""CUDA graphs give the tokens of the eager sampler."""

from types import SimpleNamespace

import pytest
import torch
from vocabulary import MASK

from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import POLICIES
from qwen3llada.sampling.remasking import SCORES
from qwen3llada.sampling.sampler import SampleParams, generate, infill, stream

SETTINGS = [
    {},
    {"cfg_scale": 1.5},
    {"temperature": 0.7, "remasking": "random_topk"},
    {"unmask": "threshold", "confidence_threshold": 0.4},
    {"remasking": "entropy", "position_temperature": 0.5},
    {"remasking": "margin", "cfg_scale": 1.0, "unmask": "factor", "factor": 1.5},
    {"remasking": "random", "temperature": 1.0, "unmask": "entropy_bound", "entropy_bound": 2.0},
]
CASES = [(policy, setting) for policy in POLICIES for setting in SETTINGS]
CASES += [("full", {"cache": "dual"}), ("full", {"cache": "dual", "cfg_scale": 1.0})]
CASES += [("block", setting | {"parallel_blocks": True}) for setting in SETTINGS]

UNKNOWN = [{"edit_threshold": 0.5}, {"remask": 1}]
# Each knob and policy of the head, alone and together with others.
SCORED = [
    {"remasking": remasking, "temperature": temperature, "position_temperature": position, **unmasking}
    for remasking in SCORES
    for temperature in (0.0, 1.0)
    for position, unmasking in (
        (0.0, {}),
        (0.6, {}),
        (0.0, {"unmask": "threshold", "confidence_threshold": 0.2}),
        (0.0, {"unmask": "factor", "factor": 2.0}),
        (0.0, {"unmask": "entropy_bound", "entropy_bound": 3.0}),
    )
]


def watched(model, prompts, params, seed=7, ends=None):
    """A generation, and the confidence [B, L] of each token when it was committed."""
    steps = stream(model, prompts, params, seed=seed, eos_token_ids=ends)
    while True:
        try:
            confidence = next(steps).confidence.clone()
        except StopIteration as end:
            return end.value, confidence


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

    @pytest.mark.parametrize("setting", SCORED)
    def test_every_score_and_way_of_unmasking(self, cuda_model, setting):
        cuda_model.config.attention_policy = "block_causal"
        params = SampleParams(steps=12, gen_length=14, block_length=5, **setting)
        prompts = [[1, 2, 3, 4, 5, 6, 7], [4, 5], list(range(20)), [9]]
        eager, sure = watched(cuda_model, prompts, params.model_copy(update={"backend": "eager"}))
        graph, just_as_sure = watched(cuda_model, prompts, params)
        assert graph.backend == "graph"
        assert torch.equal(graph.canvas, eager.canvas)
        assert graph.forward_passes == eager.forward_passes
        torch.testing.assert_close(just_as_sure, sure, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("policy", ["block_causal", "window"])
    def test_prompts_of_very_different_lengths(self, cuda_model, monkeypatch, policy):
        """They are computed in groups of like length."""
        from qwen3llada.sampling.cuda import program_cache

        monkeypatch.setattr(program_cache, "WORTH_A_PASS", 4)
        monkeypatch.setattr(program_cache, "COLUMN_BUCKET", 4)
        cuda_model.config.attention_policy, cuda_model.config.window_blocks = policy, 2
        params = SampleParams(steps=8, gen_length=8, block_length=4, cfg_scale=0.5)
        prompts = [[1, 2, 3], list(range(40)), [4] * 9, list(range(38)), [7]]
        eager = generate(cuda_model, prompts, params.model_copy(update={"backend": "eager"}))
        graph = generate(cuda_model, prompts, params)
        assert graph.backend == "graph"
        assert torch.equal(graph.canvas, eager.canvas)
        assert graph.forward_passes == eager.forward_passes + 1  # the prompts in two passes

    @pytest.mark.parametrize("policy", ["block_causal", "window"])
    def test_a_finished_block_needs_no_pass_of_its_own(self, cuda_model, policy):
        cuda_model.config.attention_policy, cuda_model.config.window_blocks = policy, 2
        params = SampleParams(steps=12, gen_length=24, block_length=4)
        prompts = [[1, 2, 3, 4, 5], [4] * 8]
        steps = len(list(stream(cuda_model, prompts, params, eos_token_ids=())))
        graph = generate(cuda_model, prompts, params, eos_token_ids=())
        assert graph.backend == "graph"
        assert graph.forward_passes == 1 + steps  # one more for the prompts

    @pytest.mark.parametrize("policy", POLICIES)
    def test_a_block_that_is_given(self, cuda_model, policy):
        """No step for its predecessor's clean pass to join."""
        cuda_model.config.attention_policy, cuda_model.config.window_blocks = policy, 1
        text = [1, 2, MASK, MASK, 4, 5, 6, 7, 3, *[MASK] * 7]
        params = SampleParams(steps=9, block_length=4)
        for setting in ({}, {"cfg_scale": 1.5, "unmask": "threshold", "confidence_threshold": 0.3}):
            params = params.model_copy(update=setting)
            eager = infill(cuda_model, [text, text[1:]], params.model_copy(update={"backend": "eager"}))
            assert torch.equal(infill(cuda_model, [text, text[1:]], params).canvas, eager.canvas)

    def test_other_values_of_a_knob_need_no_other_graph(self, cuda_model):
        from qwen3llada.sampling.cuda.program_cache import Graphs

        cuda_model.config.attention_policy = "full"
        params = SampleParams(steps=8, gen_length=8, block_length=4, temperature=0.5)
        generate(cuda_model, [[1, 2]], params)
        programs = len(Graphs.of(cuda_model)._programs)
        other = params.model_copy(update={"temperature": 1.5})
        eager = generate(cuda_model, [[1, 2]], other.model_copy(update={"backend": "eager"}))
        assert torch.equal(generate(cuda_model, [[1, 2]], other).canvas, eager.canvas)
        assert len(Graphs.of(cuda_model)._programs) == programs

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


def test_prompts_are_grouped_by_length(monkeypatch):
    pytest.importorskip("triton")
    from qwen3llada.sampling.cuda import program_cache

    monkeypatch.setattr(program_cache, "WORTH_A_PASS", 256)

    def groups(*lengths):
        return [group.tolist() for group in program_cache.by_length(torch.tensor(lengths))]

    assert groups(128, 3800, 128, 2000) == [[1, 3], [0, 2]]
    assert groups(100, 300, 0) == [[0, 1]]  # not worth a pass of its own; nothing to compute for an empty prompt
    assert groups(1000, 400, 150, 0) == [[0], [1, 2]]
    assert groups(0, 0) == []


def test_nothing_is_prepared_where_that_may_run_a_pass():
    pytest.importorskip("triton")
    from qwen3llada.sampling.cuda.sampler import GraphSampler

    def prepared(dual, count):
        units = SimpleNamespace(counts=torch.tensor([[count]]))
        sampler = SimpleNamespace(dual=dual, prepared=None, _open=lambda units: "opened")
        GraphSampler.prepare(sampler, units)
        return sampler.prepared and sampler.prepared[1]

    assert prepared(dual=False, count=1) == "opened"
    assert prepared(dual=True, count=1) is None  # its first pass is over the whole canvas
    assert prepared(dual=False, count=0) is None  # no step takes the finished block along


def interpret(folder):
    """The steps without graphs, on the CPU, in the interpreter. Needs its own process: Triton decides at import."""
    import conftest

    from qwen3llada.sampling import decoding
    from qwen3llada.sampling.cuda import program_cache
    from qwen3llada.sampling.cuda.sampler import GraphSampler

    program_cache.COLUMN_BUCKET = 2  # the interpreter is slow
    model = conftest.trained(folder)
    model.config.attention_policy, model.config.window_blocks = "window", 1
    params = SampleParams(steps=3, gen_length=5, block_length=2, temperature=0.7, remasking="margin")
    prompts = [[1, 2, 3], [4, 5]]
    ends = [int(generate(model, prompts[:1], params, seed=7).tokens[0][1])]  # so the first row ends in its second block
    eager, sure = watched(model, prompts, params, ends=ends)
    assert [len(row) for row in eager.tokens] == [2, 5]
    opened, load = [], GraphSampler._load

    def noted(self, program, units):
        opened.append((int(units.blocks[0]), units.rows.tolist()))
        return load(self, program, units)

    decoding.choose_sampler, GraphSampler._load = GraphSampler, noted
    graph, just_as_sure = watched(model, prompts, params, ends=ends)
    # The third block was prepared with both rows, before it was known that one had ended.
    assert opened == [(0, [0, 1]), (1, [0, 1]), (2, [0, 1]), (2, [1])]
    assert graph.backend == "graph"
    assert torch.equal(graph.canvas, eager.canvas)
    assert graph.forward_passes == eager.forward_passes
    torch.testing.assert_close(just_as_sure, sure, rtol=1e-4, atol=1e-6)


def test_graphs_asked_for_where_there_is_no_gpu(model):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="backend=graph cannot be used: the model is on cpu"):
        generate(model, [[1]], SampleParams(steps=8, gen_length=8, backend="graph"))


@pytest.mark.parametrize("knobs", [{}, {"unmask": "factor"}, {"position_temperature": 1.0}, *UNKNOWN])
def test_knobs_without_a_graph_are_named(knobs):
    pytest.importorskip("triton")
    from qwen3llada.sampling.cuda.support import unknown_knob

    said = unknown_knob(SampleParams(**knobs))
    if knobs in UNKNOWN:
        ((name, value),) = knobs.items()
        assert said is not None
        assert said.startswith(f"{name}={value} has no graph; ")
    else:
        assert said is None
