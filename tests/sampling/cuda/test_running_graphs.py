"""Rows of a running batch that are decoded by graphs get exactly the tokens that each gets alone.

Plain torch stands in for the kernels, and a graph is a call of its function, so that all runs on a CPU.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabulary import MASK

pytest.importorskip("triton")

import itertools

import plain_kernels
from test_running_batch import asks, check_rows, one_row, run, with_policy

from qwen3llada.errors import InputError
from qwen3llada.sampling import decoding, running_batch
from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.cuda import program_cache, running_memory, running_passes, support
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.request import infill_rows, make_request
from qwen3llada.sampling.running_batch import RunningBatch
from qwen3llada.sampling.sampler import generate, infill, stream

POLICIES = support.GRAPHED_POLICIES


@pytest.fixture
def graphed(model, monkeypatch):
    """The model, whose rows are decoded by graphs wherever they could be on a GPU."""
    plain_kernels.install(monkeypatch)
    monkeypatch.setattr(
        running_batch,
        "why_eager",
        lambda model, request: support.unknown_knob(request.params) or (None if request.policy in POLICIES else "none"),
    )
    program_cache._of_models.pop(model, None)
    return model


@settings(max_examples=8)
@given(st.lists(asks(), min_size=1, max_size=5), st.sampled_from(POLICIES))
def test_every_row_gets_the_tokens_that_it_gets_alone(graphed, asked, policy):
    check_rows(graphed, asked, policy)


SETTINGS = [
    {},
    {"temperature": 0.7, "remasking": "random_topk"},
    {"unmask": "threshold", "confidence_threshold": 0.3},
    {"remasking": "entropy", "position_temperature": 0.5, "unmask": "factor", "factor": 1.5},
    {"remasking": "margin", "cfg_scale": 1.5},
    {"remasking": "random", "temperature": 1.0, "unmask": "entropy_bound", "entropy_bound": 2.0},
    {"cfg_scale": 1.0, "unmask": "threshold", "confidence_threshold": 0.2},
]
SIZES = [(3, 12, 12), (9, 6, 14), (17, 9, 9), (1, 10, 20), (12, 14, 14), (8, 16, 16)]  # prompt, answer, steps


ALONE: dict[tuple, list[list[int]]] = {}  # answers of `mixture`, which many tests ask for; they are never changed


def mixture(model, **knobs):
    """Requests of several lengths that share a kind, and their answers alone, from the model's session-wide weights."""
    asked = [
        (DecodeParams(gen_length=answer, block_length=4, steps=steps, **knobs), list(range(7, 7 + prompt)), number)
        for number, (prompt, answer, steps) in enumerate(SIZES)
    ]
    key = id(model), str(model.device), model.config.attention_policy, repr(knobs)
    if key not in ALONE:
        answers = [generate(model, [prompt], params, seed=seed) for params, prompt, seed in asked]
        ALONE[key] = [answer.tokens[0].tolist() for answer in answers]
    return [one_row(model, params, prompt, seed) for params, prompt, seed in asked], ALONE[key]


PAIRS = [("block_causal", knobs) for knobs in SETTINGS]  # and each under one of the others, in turn
PAIRS += [([p for p in POLICIES if p != "block_causal"][number % 3], knobs) for number, knobs in enumerate(SETTINGS)]


@pytest.mark.parametrize(("policy", "knobs"), PAIRS, ids=str)
def test_rows_of_one_kind_share_every_pass(graphed, policy, knobs):
    """They come at other times, so each is at a step and block of its own."""
    with_policy(graphed, policy)
    requests, alone = mixture(graphed, **knobs)
    batch = RunningBatch(graphed)
    rows = run(batch, requests, [0, 0, 1, 2, 5, 6])
    assert [row.answer().tolist() for row in rows] == alone
    assert not batch.rows  # none was decoded eagerly
    assert batch.passes < sum(row.passes for row in rows) / 2


def test_temperatures_and_bounds_are_each_rows_own(graphed):
    """Rows that differ in numbers alone share a program; those of temperature 0 draw without noise."""
    with_policy(graphed, "block_causal")
    asked = [
        DecodeParams(gen_length=12, steps=12, temperature=temperature, unmask="threshold", confidence_threshold=bound)
        for temperature, bound in ((0.0, 0.9), (0.7, 0.2), (1.3, 0.5), (0.0, 0.1))
    ]
    batch = RunningBatch(graphed)
    rows = run(batch, [one_row(graphed, params, [1, 2, 3], 5) for params in asked], [0] * 4)
    alone = [generate(graphed, [[1, 2, 3]], params, seed=5) for params in asked]
    assert [row.answer().tolist() for row in rows] == [answer.tokens[0].tolist() for answer in alone]
    programs = [key for key in program_cache.Graphs.of(graphed)._programs if key[0] == "shared"]
    assert all(key[-1].draws for key in programs)
    assert batch.passes <= max(row.passes for row in rows) + 6


def test_confidence_is_that_of_a_row_alone(graphed):
    with_policy(graphed, "block_causal")
    params = DecodeParams(steps=8, gen_length=8, temperature=0.7)
    rows = run(RunningBatch(graphed), [one_row(graphed, params, prompt, 5) for prompt in ([1, 2, 3], [4] * 5)], [0, 3])
    for row, prompt in zip(rows, ([1, 2, 3], [4] * 5), strict=True):
        *_, last = stream(graphed, [prompt], params, seed=5)
        decided = last.confidence[0, len(prompt) :]
        assert row.confidence[0, row.answer_columns].tolist() == pytest.approx(decided.tolist(), abs=1e-5)


def check_a_long_answer(model):
    """Three blocks of four steps: a step of the batch returns what the pass before did."""
    with_policy(model, "block_causal")
    batch = RunningBatch(model)
    batch.enter(one_row(model, DecodeParams(steps=12, gen_length=12), [1, 2, 3, 4], 0, ends=()))
    seen = []
    while len(batch):
        seen.append(len(batch.step()))
    assert batch.passes == 12
    assert seen == [0, 1, 1, 1, 1] * 3


def test_a_long_answer_needs_one_pass_a_step(graphed):
    """The clean pass of a finished block joins the next one's first step; the host waits between blocks alone."""
    check_a_long_answer(graphed)


@pytest.mark.parametrize("policy", POLICIES)
def test_texts_with_masks_are_filled_in(graphed, policy):
    """A block that is given in between has no step of its own."""
    with_policy(graphed, policy)
    texts = [[1, 2, MASK, 4, MASK, MASK, 7, 8, 9, 10, MASK, 12], [3, MASK], [5, 6, 7, MASK, *range(8, 20), MASK]]
    for guidance in (0.0, 1.5):
        params = DecodeParams(steps=20, block_length=3, cfg_scale=guidance)
        alone = infill(graphed, texts, params, seed=4)
        requests = [
            make_request(graphed, infill_rows(graphed, [text]), params, noise.row_keys(4, [i]), ())
            for i, text in enumerate(texts)
        ]
        rows = run(RunningBatch(graphed), requests, [0, 1, 2])
        assert [row.answer().tolist() for row in rows] == [answer.tolist() for answer in alone.tokens]


@pytest.mark.parametrize("policy", ["block_causal", "full"])
def test_memory_grows_while_rows_are_decoded(graphed, policy, monkeypatch):
    monkeypatch.setattr(running_memory, "FIRST_COLUMNS", 64)
    with_policy(graphed, policy)
    requests, alone = mixture(graphed)
    batch = RunningBatch(graphed)
    rows = run(batch, requests, [0, 2, 3, 3, 5, 20])
    assert [row.answer().tolist() for row in rows] == alone
    assert batch._graphs._memory.spans.columns in (256, 512)
    assert not batch._graphs._memory.spans._taken
    programs = program_cache.Graphs.of(graphed)._programs.values()
    assert all(program.memory.tokens.shape[0] == batch._graphs._memory.spans.columns for program in programs)
    batch.close()
    assert not program_cache.Graphs.of(graphed)._programs


def test_captures_and_their_warm_ups_change_nothing(graphed, monkeypatch):
    """A GPU runs a new program once before its capture, while other rows are in the memory."""
    from qwen3llada.sampling.cuda import step_programs

    def run_first(function, device, pool, *, warmup):
        function()
        return function

    monkeypatch.setattr(step_programs, "CapturedFunction", run_first)
    monkeypatch.setattr(step_programs, "ROWS_OF_LOGITS", 4)  # so that a program gets new variants later
    with_policy(graphed, "block_causal")
    requests, alone = mixture(graphed, temperature=1.0)
    rows = run(RunningBatch(graphed), requests, [0, 0, 1, 2, 5, 6])
    assert [row.answer().tolist() for row in rows] == alone


def test_a_row_that_finds_no_memory_is_refused_and_the_others_go_on(graphed, monkeypatch):
    monkeypatch.setattr(running_memory, "FIRST_COLUMNS", 128)
    with_policy(graphed, "block_causal")
    requests, alone = mixture(graphed)
    guided, _ = mixture(graphed, cfg_scale=1.0)
    batch, longer = RunningBatch(graphed), running_memory._longer
    rows = [batch.enter(requests[0])]
    batch.step()
    calls = []

    def fails(old, columns):
        calls.append(columns)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return longer(old, columns)

    monkeypatch.setattr(running_memory, "_longer", fails)
    with pytest.raises(InputError, match="no memory for keys and values of 256 tokens"):
        batch.enter(guided[1])  # its first span fits, its second does not
    rows += run(batch, requests[1:3], [0, 3])
    assert [row.answer().tolist() for row in rows] == alone[:3]
    assert batch._graphs._memory.spans.columns == 256
    assert {len(x[0]) for x in batch._graphs._memory.store.keys} == {256}
    assert not batch._graphs._memory.spans._taken


def test_rows_that_leave_change_nothing_for_the_others(graphed):
    """Their columns are another row's at once, while their last pass is under way."""
    with_policy(graphed, "block_causal")
    requests, alone = mixture(graphed)
    rows = run(RunningBatch(graphed), requests, [0, 0, 3, 3, 4, 5], leave=[0, 1])
    assert [row.answer().tolist() for row in rows[2:]] == alone[2:]
    assert [row.passes for row in rows[:2]] == [2, 2]


@pytest.mark.parametrize("policy", ["block", "block_causal"])
def test_many_long_prompts_are_divided_into_passes(graphed, policy, monkeypatch):
    """A pass of too many tokens is not captured."""
    monkeypatch.setattr(running_passes, "PASS_TOKENS", 32)
    monkeypatch.setattr(running_passes, "GRAPHED_TOKENS", 16)
    with_policy(graphed, policy)
    requests, alone = mixture(graphed)
    rows = run(RunningBatch(graphed), requests, [0] * 6)
    assert [row.answer().tolist() for row in rows] == alone


def test_weights_that_move_are_noticed_between_rows(graphed):
    with_policy(graphed, "block_causal")
    requests, alone = mixture(graphed)
    batch = RunningBatch(graphed)
    assert run(batch, requests[:1], [0])[0].answer().tolist() == alone[0]
    for parameter in graphed.parameters():
        parameter.data = parameter.data.clone()
    assert run(batch, requests[1:2], [0])[0].answer().tolist() == alone[1]
    assert batch._graphs._graphs is program_cache.Graphs.of(graphed)


def test_rows_without_graphs_are_decoded_beside_them(graphed):
    with_policy(graphed, "block_causal")
    asked = [DecodeParams(steps=8, gen_length=8, remask=number % 2) for number in range(4)]
    batch = RunningBatch(graphed)
    rows = run(batch, [one_row(graphed, params, [1, 2, 3], 5) for params in asked], [0, 0, 1, 2])
    for row, params in zip(rows, asked, strict=True):
        assert row.answer().tolist() == generate(graphed, [[1, 2, 3]], params, seed=5).tokens[0].tolist()


@given(st.integers(1, 5000))
def test_buckets_are_few_and_hold_little_padding(count):
    units = running_passes.bucket(count)
    assert count <= units
    assert units <= 8 or units < count * (1.25 if count <= 128 else 1.125)
    assert running_passes.bucket(units) == units


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 300)), max_size=40))
def test_spans_never_overlap(actions):
    from qwen3llada.sampling.cuda.running_memory import Spans

    spans, taken = Spans(2048), dict[int, int]()
    for take, number in actions:
        if take:
            first = spans.take(number)
            gaps = sorted([(0, 0), *((a, a + n) for a, n in taken.items()), (2048, 2048)])
            room = max(b - a for (_, a), (b, _) in itertools.pairwise(gaps))
            assert (first is None) == (-(-number // 64) * 64 > room)
            if first is not None:
                assert all(first + number <= a or a + n <= first for a, n in taken.items())
                taken[first] = -(-number // 64) * 64
        elif taken:
            first = sorted(taken)[number % len(taken)]
            spans.give_back(first)
            del taken[first]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGpu:
    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("knobs", SETTINGS, ids=str)
    def test_every_row_gets_the_tokens_of_the_eager_sampler(self, cuda_model, policy, knobs):
        """Twice in other order: first graphs are captured, then they are replayed for other content."""
        with_policy(cuda_model, policy)
        batch = RunningBatch(cuda_model)
        requests, _ = mixture(cuda_model, **knobs)
        _, alone = mixture(cuda_model, backend="eager", **knobs)
        for arrivals in ([0, 0, 1, 2, 5, 6], [9, 7, 4, 2, 1, 0]):
            rows = run(batch, requests, arrivals)
            assert [row.answer().tolist() for row in rows] == alone
        assert not batch.rows

    def test_kinds_and_rows_without_graphs_run_beside_each_other(self, cuda_model, caplog):
        decoding.say_once.cache_clear()
        with_policy(cuda_model, "block_causal")
        found, batch = [], RunningBatch(cuda_model)
        for knobs in (*SETTINGS, {"block_attention": True}, {"block_attention": False}, {"remask": 1}):
            requests, alone = mixture(cuda_model, **knobs)
            found += [(request, answer) for request, answer in zip(requests, alone, strict=True)]
        rows = run(batch, [request for request, _ in found], [i % 7 for i in range(len(found))])
        assert [row.answer().tolist() for row in rows] == [answer for _, answer in found]
        said = [record.getMessage() for record in caplog.records if "running batch" in record.getMessage()]
        assert said == ["decoding in the running batch without CUDA graphs: remask=1 has no graph; 0 has one"]

    def test_memory_grows_and_large_passes_are_not_captured(self, cuda_model, monkeypatch):
        monkeypatch.setattr(running_memory, "FIRST_COLUMNS", 64)
        monkeypatch.setattr(running_passes, "GRAPHED_TOKENS", 16)
        with_policy(cuda_model, "block_causal")
        requests, alone = mixture(cuda_model)
        rows = run(RunningBatch(cuda_model), requests, [0, 2, 3, 3, 5, 20])
        assert [row.answer().tolist() for row in rows] == alone

    def test_biases_of_attention(self, biased_model):
        model = with_policy(biased_model.cuda(), "block_causal")
        requests, _ = mixture(model, cfg_scale=1.5)
        _, alone = mixture(model, cfg_scale=1.5, backend="eager")
        rows = run(RunningBatch(model), requests, [0, 0, 1, 2, 5, 6])
        biased_model.cpu()
        assert [row.answer().tolist() for row in rows] == alone

    def test_the_host_runs_ahead_by_one_pass(self, cuda_model):
        """A step returns what the pass before did, without waiting for its own."""
        check_a_long_answer(cuda_model)


def interpret(folder):
    """The same by the kernels themselves, on the CPU. Needs its own process: Triton decides at import."""
    import conftest

    model = conftest.trained(folder)
    running_batch.why_eager, running_memory.FIRST_COLUMNS = lambda model, request: None, 64
    for policy, length in (("full", 1), ("window", 2)):  # one pass, and two; the interpreter is slow
        with_policy(model, policy)
        params = DecodeParams(gen_length=length, steps=length, block_length=2, temperature=0.7)
        (row,) = run(RunningBatch(model), [one_row(model, params, [1, 2, 3], 1, ends=())], [0])
        alone = generate(model, [[1, 2, 3]], params, seed=1, eos_token_ids=())
        assert row.answer().tolist() == alone.tokens[0].tolist(), policy
