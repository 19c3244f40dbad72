"""Rows that enter and leave a running batch at any time get exactly the tokens that each gets alone."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vocabulary import EOS, MASK

from qwen3llada.modeling.attention import POLICIES, layer_kinds
from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.remasking import SCORES
from qwen3llada.sampling.request import infill_rows, make_request, prompt_rows
from qwen3llada.sampling.running_batch import RunningBatch, shares_passes, why_eager
from qwen3llada.sampling.sampler import generate, infill
from qwen3llada.sampling.shared_pass import PASS_TOKENS, share
from qwen3llada.sampling.unmasking import UNMASKING

PLANS = [*sorted(POLICIES), "alternate:full,block", "alternate:window,block_causal"]
settings.register_profile("running", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("running")


@st.composite
def asks(draw, own_policy=False):
    """One request: parameters, prompt, seed, and the step of the batch in which it comes."""
    gen_length, block_length = draw(st.integers(1, 14)), draw(st.integers(1, 6))
    blocks, unmask = -(-gen_length // block_length) + 1, draw(st.sampled_from(sorted(UNMASKING)))
    values = {
        "gen_length": gen_length,
        "block_length": block_length,
        "steps": draw(st.integers(blocks, gen_length + 4)),
        "temperature": draw(st.sampled_from([0.0, 0.7, 1.3])),
        "cfg_scale": draw(st.sampled_from([0.0, 0.0, 1.5])),
        "remasking": draw(st.sampled_from(sorted(SCORES))),
        "remasking_temperature": draw(st.sampled_from([0.5, 1.0])),
        "position_temperature": 0.0 if unmask == "entropy_bound" else draw(st.sampled_from([0.0, 0.5])),
        "unmask": unmask,
        "confidence_threshold": draw(st.sampled_from([0.05, 0.4, 1.0])),
        "factor": draw(st.sampled_from([0.5, 2.0])),
        "entropy_bound": draw(st.sampled_from([0.5, 3.0])),
        "edit_threshold": draw(st.sampled_from([0.0, 0.0, 0.2])),
        "max_post_edit_steps": draw(st.integers(0, 3)),
        "remask": draw(st.integers(0, 3)) if unmask == "fixed" else 0,
        "remask_start": draw(st.sampled_from([0.5, 0.875])),
        "block_attention": draw(st.sampled_from([None, True, False])) if own_policy else None,
    }
    prompt = draw(st.lists(st.integers(0, 45), min_size=1, max_size=20))
    return DecodeParams(**values), prompt, draw(st.integers(0, 2**62)), draw(st.integers(0, 12))


def with_policy(model, policy):
    model.config.attention_policy, model.config.window_blocks = policy, 1
    model.config.layer_types = layer_kinds(policy, model.config.num_hidden_layers)
    return model


def one_row(model, params, prompt, seed, ends=(EOS,)):
    return make_request(model, prompt_rows(model, [prompt], params), params, noise.row_keys(seed, [0]), ends)


def run(batch, requests, arrivals, leave=()):
    """Answers of the requests, each entering when its time has come. Those in `leave` are given up after two steps."""
    rows, waiting, step = {}, sorted(range(len(requests)), key=lambda i: arrivals[i]), 0
    while waiting or len(batch):
        while waiting and arrivals[waiting[0]] <= step:
            number = waiting.pop(0)
            rows[number] = batch.enter(requests[number])
        batch.step()
        step += 1
        for number in leave:
            if number in rows and rows[number].passes == 2:
                batch.leave(rows[number])
    return [rows[i] for i in range(len(requests))]


def check_rows(model, asked, policy):
    """Every row gets the tokens that it gets alone."""
    with_policy(model, policy)
    requests = [one_row(model, params, prompt, seed) for params, prompt, seed, _ in asked]
    rows = run(RunningBatch(model), requests, [when for *_, when in asked])
    for row, (params, prompt, seed, _) in zip(rows, asked, strict=True):
        alone = generate(model, [prompt], params, seed=seed)
        assert row.answer().tolist() == alone.tokens[0].tolist(), (params, prompt, seed)
        assert row.tokens[0, : len(prompt)].tolist() == prompt
        assert MASK not in row.answer()


@settings(max_examples=12)
@given(st.lists(asks(), min_size=1, max_size=5), st.sampled_from(PLANS))
def test_every_row_gets_the_tokens_that_it_gets_alone(model, asked, policy):
    check_rows(model, asked, policy)


@pytest.mark.parametrize(
    ("policy", "knobs"),
    [
        ("block_causal", {"temperature": 0.7, "remasking": "random_topk"}),
        ("full", {"position_temperature": 0.5, "unmask": "threshold", "confidence_threshold": 0.2}),
        ("block_causal", {"remask": 2, "remask_start": 0.5, "temperature": 0.7}),
        ("block_causal", {"edit_threshold": 0.05, "max_post_edit_steps": 3, "unmask": "factor"}),
        ("full", {"edit_threshold": 0.05, "temperature": 0.7}),
        ("block_causal", {"cfg_scale": 1.5, "remasking": "random"}),
    ],
    ids=str,
)
def test_rows_of_equal_knobs_at_other_steps_are_decided_together(model, policy, knobs):
    """They are one group, padded to the widest block, each at a step of its own."""
    with_policy(model, policy)
    sizes = [(3, 4, 12), (9, 3, 14), (1, 6, 9), (5, 2, 20), (12, 5, 10), (2, 4, 16)]
    asked = [
        (DecodeParams(gen_length=12, block_length=block, steps=steps, **knobs), list(range(7, 7 + length)), number)
        for number, (length, block, steps) in enumerate(sizes)
    ]
    requests = [one_row(model, params, prompt, seed, ends=()) for params, prompt, seed in asked]
    rows = run(RunningBatch(model), requests, [0, 1, 1, 2, 4, 5])
    for row, (params, prompt, seed) in zip(rows, asked, strict=True):
        alone = generate(model, [prompt], params, seed=seed, eos_token_ids=())
        assert row.answer().tolist() == alone.tokens[0].tolist()


@settings(max_examples=5)
@given(st.lists(asks(own_policy=True), min_size=2, max_size=5))
def test_rows_of_other_policies_run_beside_each_other(model, asked):
    with_policy(model, "block_causal")
    requests = [one_row(model, params, prompt, seed) for params, prompt, seed, _ in asked]
    rows = run(RunningBatch(model), requests, [when for *_, when in asked])
    for row, (params, prompt, seed, _) in zip(rows, asked, strict=True):
        assert row.answer().tolist() == generate(model, [prompt], params, seed=seed).tokens[0].tolist()


@settings(max_examples=8)
@given(st.lists(asks(), min_size=3, max_size=6), st.sampled_from(PLANS), st.sets(st.integers(0, 2), min_size=1))
def test_rows_that_leave_change_nothing_for_the_others(model, asked, policy, leave):
    with_policy(model, policy)
    requests = [one_row(model, params, prompt, seed) for params, prompt, seed, _ in asked]
    batch = RunningBatch(model)
    rows = run(batch, requests, [when for *_, when in asked], leave)
    for number, (row, (params, prompt, seed, _)) in enumerate(zip(rows, asked, strict=True)):
        if number not in leave:
            assert row.answer().tolist() == generate(model, [prompt], params, seed=seed).tokens[0].tolist()
        else:
            assert row.finished or row.passes == 2
    assert not len(batch)


@pytest.mark.parametrize("policy", PLANS)
def test_texts_with_masks_are_filled_in(model, policy):
    with_policy(model, policy)
    texts = [[1, 2, MASK, 4, MASK, MASK, 7, 8, 9, 10, MASK, 12], [3, MASK], [5, 6, 7, MASK, *range(8, 20), MASK]]
    params = DecodeParams(steps=20, block_length=3)
    alone = infill(model, texts, params, seed=4)
    keys = [noise.row_keys(4, [i]) for i in range(3)]
    requests = [
        make_request(model, infill_rows(model, [text]), params, key, ()) for text, key in zip(texts, keys, strict=True)
    ]
    rows = run(RunningBatch(model), requests, [0, 1, 2])
    assert [row.answer().tolist() for row in rows] == [answer.tolist() for answer in alone.tokens]


def test_rows_of_any_age_and_knob_share_one_pass(model):
    """Six rows that came at other times, with other prompts, blocks, temperatures and scores: a pass a step."""
    with_policy(model, "block_causal")
    batch, sizes = RunningBatch(model), [(3, 4, 0.0), (9, 4, 0.7), (1, 3, 0.7), (5, 2, 0.0), (12, 4, 1.0), (2, 4, 0.0)]
    scores = sorted(SCORES)
    for number, (length, block, temperature) in enumerate(sizes):
        params = DecodeParams(
            steps=16, gen_length=16, block_length=block, temperature=temperature, remasking=scores[number % 5]
        )
        batch.enter(one_row(model, params, list(range(length)), number, ends=()))
        before = batch.passes
        batch.step()
        assert batch.passes == before + 1
    assert len(batch) == 6


def test_confidence_is_that_of_a_row_alone(model):
    from qwen3llada.sampling.sampler import stream

    with_policy(model, "block_causal")
    params, prompts = DecodeParams(steps=8, gen_length=8, temperature=0.7), [[1, 2, 3], [4, 5, 6, 7, 8]]
    batch = RunningBatch(model)
    rows = run(batch, [one_row(model, params, prompt, 5) for prompt in prompts], [0, 3])
    for row, prompt in zip(rows, prompts, strict=True):
        *_, last = stream(model, [prompt], params, seed=5)
        decided = last.confidence[0, len(prompt) :]
        assert row.confidence[0, row.answer_columns].tolist() == pytest.approx(decided.tolist(), abs=1e-5)


def test_tokens_that_may_still_be_revised_are_not_settled(model):
    from qwen3llada.sampling.sampler import stream

    with_policy(model, "block_causal")
    params = DecodeParams(steps=12, gen_length=12, edit_threshold=0.2, remask=1)
    batch = RunningBatch(model)
    row = batch.enter(one_row(model, params, [1, 2, 3], 5))
    for step in stream(model, [[1, 2, 3]], params, seed=5):
        batch.step()
        assert row.tokens[0, : 3 + 12].tolist() == step.canvas[0].tolist()
        assert row.settled[0, : 3 + 12].tolist() == step.settled[0].tolist()
    assert row.finished


def test_memory_of_keys_and_values_is_given_back(model):
    with_policy(model, "block_causal")
    batch = RunningBatch(model)
    params = DecodeParams(steps=8, gen_length=8)
    run(batch, [one_row(model, params, [1, 2, 3], 0)] * 3, [0, 0, 0])
    (passes,) = batch._passes.values()
    assert not passes.cache._layers
    batch.enter(one_row(model, params, [1], 0))
    batch.step()
    keys, _ = passes.cache._layers[0]
    assert keys.shape[0] == 1
    assert keys.isfinite().all()


def test_a_cache_that_is_far_too_large_shrinks_and_keeps_what_it_holds():
    from qwen3llada.sampling.row_cache import RowCache

    cache = RowCache()
    cache.reserve(2, 10)
    columns, real = torch.arange(3).expand(2, 3), torch.ones(2, 3, dtype=torch.bool)
    new = torch.randn(2, 1, 3, 4)
    with cache.passing(torch.tensor([0, 1]), columns, real, 3):
        first, _ = cache.update(new, new, 0)
        assert torch.equal(first, new)
    for slots, most in ((2, 5000), (64, 5000), (2, 10)):
        cache.reserve(slots, most)
        assert torch.equal(cache._layers[0][0][:2, :, :3], new)
    assert cache._layers[0][0].shape == (2, 1, 65, 4)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40), st.sampled_from([0, 64, 2048]))
def test_passes_hold_every_span_once_with_little_padding(lengths, most):
    passes = list(share(lengths, most))
    assert sorted(i for together in passes for i in together) == list(range(len(lengths)))
    for together in passes:
        longest = max(lengths[i] for i in together)
        assert sum(longest - lengths[i] for i in together) <= most
        assert len(together) == 1 or longest * len(together) <= PASS_TOKENS


def test_what_cannot_share_a_pass_is_told_apart(model):
    assert not shares_passes(DecodeParams(parallel_blocks=True))
    assert not shares_passes(DecodeParams(cache="dual"))
    with_policy(model, "full")
    params = DecodeParams(cache="dual", gen_length=8, steps=8)
    with pytest.raises(ValueError, match="one row"):
        RunningBatch(model).enter(one_row(model, params, [1], 0))


def test_why_a_row_has_no_graphs(model):
    for backend, reason in (("eager", "backend=eager"), ("auto", f"the model is on {model.device.type}")):
        request = one_row(model, DecodeParams(steps=4, gen_length=4, backend=backend), [1, 2, 3], 0)
        assert why_eager(model, request) == reason
