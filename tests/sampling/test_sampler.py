"""The sampler gives the tokens of a plain one, for every combination of parameters."""

import random as random_numbers

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_sampler import published, sample
from vocabulary import EOS, MASK

from qwen3llada.modeling.attention import POLICIES, layer_kinds
from qwen3llada.sampling.remasking import SCORES
from qwen3llada.sampling.sampler import SampleParams, generate, infill, stream
from qwen3llada.sampling.unmasking import UNMASKING

# Without a prompt all masks of a block are alike, and rounding decides which of the equal scores is best.
prompts = st.lists(st.lists(st.integers(0, 45), min_size=1, max_size=9), min_size=1, max_size=4)
texts_with_masks = st.builds(
    lambda first, rest: [first, *rest, MASK], st.integers(0, 45), st.lists(st.integers(0, 47), max_size=18)
)
PLANS = [*sorted(POLICIES), "alternate:full,block", "alternate:window,block_causal"]
settings.register_profile("sampler", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("sampler")


@st.composite
def requests(draw):
    gen_length, block_length = draw(st.integers(1, 14)), draw(st.integers(1, 6))
    blocks = -(-gen_length // block_length) + 1  # one more where the prompt ends within a block
    policy, unmask = draw(st.sampled_from(PLANS)), draw(st.sampled_from(sorted(UNMASKING)))
    values = {
        "gen_length": gen_length,
        "block_length": block_length,
        "steps": draw(st.integers(blocks, gen_length + 4)),
        "temperature": draw(st.sampled_from([0.0, 0.7])),
        "cfg_scale": draw(st.sampled_from([0.0, 1.5])),
        "remasking": draw(st.sampled_from(sorted(SCORES))),
        "remasking_temperature": draw(st.sampled_from([0.0, 1.0])),
        "position_temperature": 0.0 if unmask == "entropy_bound" else draw(st.sampled_from([0.0, 0.5])),
        "unmask": unmask,
        "confidence_threshold": draw(st.sampled_from([0.05, 0.4, 1.0])),
        "factor": draw(st.sampled_from([0.0, 0.5, 2.0])),
        "entropy_bound": draw(st.sampled_from([0.0, 0.5, 3.0])),
        "edit_threshold": draw(st.sampled_from([0.0, 0.0, 0.2])),
        "max_post_edit_steps": draw(st.integers(0, 3)),
        "remask": draw(st.integers(0, 3)) if unmask == "fixed" else 0,
        "remask_start": draw(st.sampled_from([0.0, 0.5, 0.875, 1.0])),
        "remask_steps": draw(st.sampled_from([None, 1, 3])),
        "parallel_blocks": policy == "block" and draw(st.booleans()),
        "cache": "dual" if policy == "full" and draw(st.booleans()) else "none",
    }
    return SampleParams(**values), policy, draw(st.integers(0, 2**62))


# A knob, the value that it is compared with, and what else it needs. Each changes tokens under every policy.
KNOBS = {
    "temperature": ({"temperature": 0.7}, {"temperature": 0.0}),
    "cfg_scale": ({"cfg_scale": 1.5}, {"cfg_scale": 0.0}),
    "low_confidence": ({"remasking": "low_confidence"}, {"remasking": "random"}),
    **{name: ({"remasking": name}, {"remasking": "low_confidence"}) for name in SCORES if name != "low_confidence"},
    "remasking_temperature": (
        {"remasking": "random_topk", "remasking_temperature": 1.0, "unmask": "fixed"},
        {"remasking_temperature": 0.0},
    ),
    "position_temperature": ({"position_temperature": 0.5, "unmask": "fixed"}, {"position_temperature": 0.0}),
    **{name: ({"unmask": name, "remask": 0}, {"unmask": "fixed"}) for name in UNMASKING if name != "fixed"},
    "confidence_threshold": ({"unmask": "threshold", "confidence_threshold": 0.03}, {"confidence_threshold": 1.0}),
    "factor's value": ({"unmask": "factor", "factor": 4.0}, {"factor": 0.0}),
    "entropy_bound's value": ({"unmask": "entropy_bound", "entropy_bound": 4.0}, {"entropy_bound": 0.0}),
    "edit_threshold": ({"edit_threshold": 0.05}, {"edit_threshold": 0.0}),
    "max_post_edit_steps": ({"edit_threshold": 0.05, "max_post_edit_steps": 3}, {"max_post_edit_steps": 0}),
    "remask": ({"remask": 2, "unmask": "fixed"}, {"remask": 0}),
    "remask_start": ({"remask": 2, "remask_start": 0.4, "unmask": "fixed"}, {"remask_start": 1.0}),
    "remask_steps": ({"remask": 1, "remask_steps": 1, "unmask": "fixed"}, {"remask_steps": 4}),
    "steps": ({"steps": 6, "unmask": "fixed"}, {"steps": 16}),
}
# A quarter of the pairs, for time: each policy with a quarter of the knobs, each knob under one policy or two.
CASES = [(policy, knob) for i, policy in enumerate(PLANS) for j, knob in enumerate(KNOBS) if (i + j) % 4 == 0]


def some_request(random, policy, knob):
    """Prompts, the parameters of a knob with others at random, and the same without it."""
    used, unused = KNOBS[knob]
    unmask = used.get("unmask") or random.choice(["fixed", "fixed", "threshold", "factor", "entropy_bound"])
    planned, by_entropy = unmask == "fixed", unmask == "entropy_bound"
    values = {
        "gen_length": random.randint(8, 10),
        "block_length": random.randint(4, 6),
        "steps": random.randint(4, 12),
        "temperature": random.choice([0.0, 0.7]),
        "cfg_scale": random.choice([0.0, 0.0, 1.5]),
        "remasking": random.choice(sorted(SCORES)),
        "position_temperature": 0.0 if by_entropy or "entropy_bound" in used.values() else random.choice([0, 0.5]),
        "unmask": unmask,
        "confidence_threshold": 0.1,
        "factor": 2.0,
        "entropy_bound": 2.0,
        "edit_threshold": random.choice([0.0, 0.0, 0.2]),
        "max_post_edit_steps": random.randint(0, 3),
        "remask": random.choice([0, 0, 2]) if planned else 0,
        "parallel_blocks": policy == "block" and random.random() < 0.3,
        "cache": "dual" if policy == "full" and random.random() < 0.3 else "none",
    }
    rows = [[random.randrange(46) for _ in range(random.randint(1, 9))] for _ in range(random.randint(1, 2))]
    return rows, SampleParams(**(values | used)), SampleParams(**(values | used | unused))


def with_policy(model, policy):
    model.config.attention_policy, model.config.window_blocks = policy, 1
    model.config.layer_types = layer_kinds(policy, model.config.num_hidden_layers)
    return model


def plain_answers(model, rows, params, policy, seed, keys, ends=(EOS,)):
    return [answer for answer, _ in plain_runs(model, rows, params, policy, seed, keys, ends)]


def plain_runs(model, rows, params, policy, seed, keys, ends=(EOS,)):
    """The answer to each row, and its passes."""
    answers = [[MASK] * params.gen_length] * len(rows)
    common = {"params": params, "policy": policy, "block_length": params.block_length, "seed": seed, "ends": ends}
    common["window"] = 1
    return [sample(model, *row, row=key, **common) for *row, key in zip(rows, answers, keys, strict=True)]


@pytest.mark.parametrize(("policy", "knob"), CASES)
def test_every_knob_has_its_effect(model, policy, knob):
    """A request in which the knob changes tokens gives those of the plain sampler, in as many passes."""
    random = random_numbers.Random(f"{policy} {knob}")
    with_policy(model, policy)
    for seed in range(60):
        rows, params, without = some_request(random, policy, knob)
        ours = [answer.tolist() for answer in generate(model, rows, params, seed=seed).tokens]
        if ours != [answer.tolist() for answer in generate(model, rows, without, seed=seed).tokens]:
            plain = plain_runs(model, rows, params, policy, seed, range(len(rows)))
            assert ours == [answer for answer, _ in plain]
            if not params.parallel_blocks:
                assert len(list(stream(model, rows[:1], params, seed=seed))) == plain[0][1]
            return
    pytest.fail(f"{knob} changed no tokens")


@settings(max_examples=20)
@given(prompts, requests())
def test_every_combination_equals_the_plain_sampler(model, rows, request_):
    params, policy, seed = request_
    ours = generate(with_policy(model, policy), rows, params, seed=seed)
    plain = plain_answers(model, rows, params, policy, seed, range(len(rows)))
    assert [answer.tolist() for answer in ours.tokens] == plain
    start = max(map(len, rows))
    for row, canvas in zip(rows, ours.canvas.tolist(), strict=True):
        assert canvas[start - len(row) : start] == row  # prompts never change
        assert MASK not in canvas[start:]


@settings(max_examples=15)
@given(prompts, requests(), st.randoms(use_true_random=False))
def test_a_row_keeps_its_tokens_in_any_batch(model, rows, request_, random):
    params, policy, seed = request_
    together = generate(with_policy(model, policy), rows, params, seed=seed)
    order = random.sample(range(len(rows)), random.randint(1, len(rows)))
    some = generate(model, [rows[i] for i in order], params, seed=seed, row_keys=order)
    assert [a.tolist() for a in some.tokens] == [together.tokens[i].tolist() for i in order]


@settings(max_examples=40)
@given(st.lists(texts_with_masks, min_size=1, max_size=3), requests())
def test_infilling_equals_the_plain_sampler(model, texts, request_):
    params, policy, seed = request_
    params = params.model_copy(update={"steps": params.steps + 20})
    ours = infill(with_policy(model, policy), texts, params, seed=seed)
    for row, text in enumerate(texts):
        first = text.index(MASK)
        plain, _ = sample(
            model,
            text[:first],
            text[first:],
            params=params,
            policy=policy,
            block_length=params.block_length,
            seed=seed,
            row=row,
            window=1,
        )
        assert ours.tokens[row].tolist() == plain
        assert all(new == old for new, old in zip(plain, text[first:], strict=True) if old != MASK)
        assert MASK not in plain


@settings(max_examples=15)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([(12, 4), (12, 12), (8, 2)]),
    st.booleans(),
    st.data(),
)
def test_greedy_equals_the_published_algorithm(model, batch, length, lengths, guided, data):
    gen_length, block_length = lengths
    prompt = torch.randint(0, 46, (batch, length), generator=torch.Generator().manual_seed(length))
    sizes = {
        "steps": gen_length // block_length * data.draw(st.integers(1, block_length)),
        "gen_length": gen_length,
        "block_length": block_length,
        "cfg_scale": 0.8 if guided else 0.0,
    }
    truth = published(with_policy(model, "full"), prompt, **sizes)
    assert torch.equal(generate(model, prompt, SampleParams(**sizes), eos_token_ids=()).canvas, truth)


@pytest.mark.parametrize("policy", PLANS)
def test_a_row_that_ends_early_saves_the_rest(model, policy):
    params = SampleParams(steps=24, gen_length=24, block_length=4)
    rows = [[EOS - 3, EOS - 2, EOS - 1], [1, 2, 3, 4, 5]]
    ends = [int(generate(with_policy(model, policy), rows, params, eos_token_ids=()).tokens[0][1])]
    ours = generate(model, rows, params, eos_token_ids=ends)
    assert [a.tolist() for a in ours.tokens] == plain_answers(model, rows, params, policy, 0, range(2), ends)
    assert len(ours.tokens[0]) <= 2
    assert ours.canvas[0, 5 + 4 :].tolist() == ends * 20
    alone = generate(model, rows[:1], params, eos_token_ids=ends)
    assert alone.forward_passes <= 4 + 1  # one block, and the prompt


def test_steps_are_seen_one_by_one_and_never_undone(model):
    params = SampleParams(steps=8, gen_length=12, block_length=4)
    rows, seen = [[3, 5, 7], [1, 2]], []
    steps = stream(with_policy(model, "full"), rows, params, eos_token_ids=())
    previous = torch.full((2, 15), MASK)
    for number, step in enumerate(steps):
        canvas = step.canvas.clone()
        assert step.index == number
        changed = canvas[:, 3:] != previous[:, 3:]
        assert torch.equal(changed, step.committed[:, 3:])
        assert (previous[:, 3:][changed] == MASK).all()
        assert ((step.confidence > 0) == (canvas != MASK))[:, 3:].all()
        assert (step.confidence <= 1).all()
        previous = canvas
        seen.append(int(changed[0].sum()))
    assert seen == [2, 1, 1, 2, 1, 1, 2, 2]  # 3, 3 and 2 steps for three blocks of 4
    whole = generate(model, rows, params, eos_token_ids=())
    assert torch.equal(whole.canvas, previous)
    assert whole.forward_passes == 8


def test_parallel_blocks_take_the_passes_of_one_block(model):
    params = SampleParams(steps=12, gen_length=12, block_length=4, block_attention=True)
    one_by_one = generate(model, [[1, 2, 3]], params, eos_token_ids=())
    at_once = generate(model, [[1, 2, 3]], params.model_copy(update={"parallel_blocks": True}), eos_token_ids=())
    assert (one_by_one.forward_passes, at_once.forward_passes) == (1 + 12, 1 + 4)


def test_block_attention_overrides_the_checkpoint(model):
    rows = [[4, 8, 12, 16]]
    params = SampleParams(steps=12, gen_length=12, block_length=4)
    answers = {}
    for policy in ("full", "block"):
        answers[policy] = generate(with_policy(model, policy), rows, params).tokens[0].tolist()
        for other in ("full", "block"):
            asked = params.model_copy(update={"block_attention": policy == "block"})
            assert generate(with_policy(model, other), rows, asked).tokens[0].tolist() == answers[policy]
    assert answers["full"] != answers["block"]


def test_the_block_length_is_the_checkpoints_unless_given(model):
    rows, params = [[4, 8, 12, 16]], SampleParams(steps=12, gen_length=12)
    four = generate(with_policy(model, "block"), rows, params).tokens[0].tolist()
    assert four == generate(model, rows, params.model_copy(update={"block_length": 4})).tokens[0].tolist()
    assert four != generate(model, rows, params.model_copy(update={"block_length": 12})).tokens[0].tolist()


def test_dual_cache_is_exact_for_one_step_a_block_and_close_otherwise(model):
    rows = [[4, 8, 12, 16], [1, 2]]
    params = SampleParams(steps=3, gen_length=12, block_length=4)
    exact = generate(with_policy(model, "full"), rows, params)
    assert torch.equal(generate(model, rows, params.model_copy(update={"cache": "dual"})).canvas, exact.canvas)
    slow = params.model_copy(update={"steps": 12, "cache": "dual"})
    assert MASK not in generate(model, rows, slow).canvas


def test_seeds_and_generators(model):
    params = SampleParams(steps=8, gen_length=8, block_length=4, temperature=1.0)

    def ask(**given):
        return generate(with_policy(model, "full"), [[1, 2, 3]] * 2, params, eos_token_ids=(), **given).tokens

    first = ask(seed=1)
    assert torch.equal(first[0], ask(seed=1)[0])
    assert not torch.equal(first[0], ask(seed=2)[0])
    assert not torch.equal(first[0], first[1])  # rows have their own noise
    drawn = [ask(generator=torch.Generator().manual_seed(5))[0] for _ in range(2)]
    assert torch.equal(*drawn)
    generator = torch.Generator().manual_seed(5)
    ask(generator=generator)
    assert not torch.equal(drawn[0], ask(generator=generator)[0])


@pytest.mark.parametrize(
    ("rows", "given_", "message"),
    [
        ([], {}, "prompts must hold at least one row"),
        ([[1] * 60], {}, "must not exceed the model's max_position_embeddings=64"),
        ([[1, MASK]], {}, "holds the mask token 47: use infill"),
        ([[1, 48]], {}, "holds token 48, must be in"),
        ([[1, -1]], {}, "holds token -1, must be in"),
        (torch.zeros(2, 3), {}, "must be integers"),
        ([[1]], {"steps": 1}, "steps=1 must be at least the number of blocks to decode, 2"),
        ([[1]], {"parallel_blocks": True}, "parallel_blocks=true needs attention policy block, not full"),
    ],
)
def test_wrong_requests_say_so_in_one_line(model, rows, given_, message):
    params = SampleParams(**({"steps": 8, "gen_length": 8, "block_length": 4} | given_))
    with pytest.raises(ValueError, match=message) as caught:
        generate(with_policy(model, "full"), rows, params)
    assert "\n" not in str(caught.value)


def test_other_wrong_requests(model):
    params = SampleParams(steps=8, gen_length=8, block_length=4)
    with pytest.raises(ValueError, match="must hold the mask token"):
        infill(with_policy(model, "full"), [[1, 2]], params)
    with pytest.raises(ValueError, match="cache=dual needs attention policy full, not block"):
        generate(with_policy(model, "block"), [[1]], params.model_copy(update={"cache": "dual"}))
    with pytest.raises(ValueError, match="row_keys must hold one number for each row"):
        generate(model, [[1]], params, row_keys=[1, 2])


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"gen_length": 0}, "gen_length"),
        ({"cfg_scale": -1}, "cfg_scale"),
        ({"remasking": "best"}, "remasking='best' must be one of low_confidence, random"),
        ({"parallel_blocks": True, "block_attention": False}, "parallel_blocks=true must not be combined"),
        ({"cache": "dual", "block_attention": True}, "cache=dual must not be combined"),
        ({"unmask": "best"}, "unmask='best' must be one of fixed, threshold, factor, entropy_bound"),
        ({"remask": 1, "unmask": "factor"}, "remask=1 must not be combined with unmask=factor"),
        (
            {"position_temperature": 0.5, "unmask": "entropy_bound"},
            "position_temperature=0.5 must not be combined with unmask=entropy_bound",
        ),
    ],
)
def test_wrong_parameters_say_so(given_, message):
    with pytest.raises(ValueError, match=message):
        SampleParams(**given_)


@pytest.mark.parametrize("policy", ["block_causal", "window"])
def test_a_block_that_is_given_is_seen_by_later_ones_with_those_before_it(model, policy):
    """A block without masks needs no pass, which the block before it could have joined."""
    params = SampleParams(steps=9, block_length=4)
    for seed in (3, 10, 38):
        text = torch.randint(0, 46, (16,), generator=torch.Generator().manual_seed(seed))
        text[2:4] = text[9:] = MASK
        text[4:8] = torch.randint(0, 46, (4,), generator=torch.Generator().manual_seed(seed + 100))
        ours = infill(with_policy(model, policy), [text.tolist()], params).tokens[0].tolist()
        common = {"params": params, "policy": policy, "block_length": 4, "window": 1}
        assert ours == sample(model, text.tolist()[:2], text.tolist()[2:], **common)[0]
