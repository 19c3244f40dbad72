"""Likelihood bounds against enumerations, chain rules and loops over one mask at a time."""

import itertools
import math

import numpy as np
import pytest
import torch

from qwen3llada.errors import InputError
from qwen3llada.evaluation import masked_passes
from qwen3llada.evaluation.likelihood import Bound, estimate, log_likelihood, nelbo
from qwen3llada.evaluation.mask_counts import MaskRounds, mask_rounds
from qwen3llada.modeling.attention import POLICIES
from tests.objective.objective_steps import MASK, make_model
from tests.objective.test_copies import PLANS, WINDOW, logits_of_document

rng = np.random.default_rng(7)
TEXTS = [rng.integers(0, 60, n).tolist() for n in (13, 9, 16, 2, 11, 1)]
PROMPTS = [5, 4, 9, 1, 0, 0]


@pytest.fixture
def model():
    model = make_model().eval()
    model.config.window_blocks = WINDOW
    return model


def set_policy(model, policy, block_length):
    from qwen3llada.modeling.params import AttentionParams, store_attention

    knobs = {"policy": policy, "block_length": block_length, "window_blocks": WINDOW}
    store_attention(model.config, AttentionParams.model_validate(knobs))


def blocks_of(policy, prompt, length, block_length):
    """Of each predicted position, by hand."""
    if "full" in policy:
        return [0] * (length - prompt)
    start = prompt if policy == "block" else 0
    return [(i - start) // block_length for i in range(prompt, length)]


@torch.no_grad()
def cross_entropies(model, policy, text, hidden, prompt, block_length):
    """Of the positions in `hidden`, by one pass for each block on a clean past."""
    set_policy(model, policy, block_length)
    noisy = [MASK if i in hidden else token for i, token in enumerate(text)]
    log_q = logits_of_document(model, policy, text, noisy, prompt, block_length).log_softmax(-1)
    return {i: -float(log_q[i, text[i]]) for i in hidden}


def by_hand(model, policy, text, prompt, block_length, masks, blocks):
    """The bound of each round, with the masks that were drawn."""
    found = []
    for masked in masks:
        hidden = [prompt + int(i) for i in masked.nonzero()[0]]
        values = cross_entropies(model, policy, text, hidden, prompt, block_length)
        count = {b: sum(blocks[i - prompt] == b for i in hidden) for b in blocks}
        found.append(sum(blocks.count(blocks[i - prompt]) / count[blocks[i - prompt]] * values[i] for i in hidden))
    return found


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("policy", PLANS)
def test_every_policy_equals_a_loop_over_the_same_masks(model, policy, conditional):
    prompts = PROMPTS if conditional else None
    found = estimate(model, TEXTS, policy=policy, block_length=4, rounds=3, seed=2, prompt_lengths=prompts)
    for number, text in enumerate(TEXTS):
        prompt = PROMPTS[number] if conditional else 0
        blocks = blocks_of(policy, prompt, len(text), 4)
        masks = mask_rounds(np.array(blocks), 3, seed=2, key=number).masked
        expected = by_hand(model, policy, text, prompt, 4, masks, blocks)
        assert found.nats[number].tolist() == pytest.approx(expected, rel=1e-5)
        assert found.tokens[number] == len(text) - prompt


def order_nll(model, policy, text, prompt, block_length, order, seen):
    """NLL of decoding one position at a time in that order, each given all decoded before."""
    total = 0.0
    for done in range(len(order)):
        hidden = tuple(sorted(order[done:]))
        if hidden not in seen:
            seen[hidden] = cross_entropies(model, policy, text, hidden, prompt, block_length)
        total += seen[hidden][order[done]]
    return total


def all_masks(blocks, rounds, *, seed, key):
    """All masks of one block of four: each count as often as any other, each set of that many as any other."""
    assert len(blocks) == 4
    assert len(set(blocks.tolist())) == 1
    sets = [s for n in range(1, 5) for s in itertools.combinations(range(4), n) for _ in range(12 // math.comb(4, n))]
    masked = np.zeros((len(sets), 4), bool)
    for row, chosen in zip(masked, sets, strict=True):
        row[list(chosen)] = True
    return MaskRounds(masked, np.repeat(masked.sum(1), 4).reshape(-1, 4), np.full(4, 4))


@pytest.mark.parametrize("policy", [*POLICIES, "alternate:block_causal,window"])
def test_the_bound_is_the_mean_over_all_orders_of_decoding(model, policy, monkeypatch):
    """n! orders of a block of four, given eight clean tokens."""
    monkeypatch.setattr(masked_passes, "mask_rounds", all_masks)
    text = TEXTS[0][:12]
    found = log_likelihood(model, [(text[:8], text[8:])], policy=policy, block_length=4, rounds=48)[0]
    orders = list(itertools.permutations(range(8, 12)))
    seen = {}
    expected = [order_nll(model, policy, text, 8, 4, order, seen) for order in orders]
    assert len(orders) == 24
    assert -found.nats == pytest.approx(sum(expected) / 24, rel=1e-5)
    assert found.tokens == 4


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_estimator_is_within_three_sigma_of_the_enumeration(model, rounds, monkeypatch):
    text = TEXTS[0][:12]
    with monkeypatch.context() as patch:
        patch.setattr(masked_passes, "mask_rounds", all_masks)
        exact = nelbo(model, [text], policy="full", prompt_lengths=[8], rounds=48).nats
    errors = []
    for seed in range(12):
        found = nelbo(model, [text] * 60, policy="full", prompt_lengths=[8] * 60, rounds=rounds, seed=seed)
        errors.append((found.nats - exact) / found.standard_error)
    assert max(map(abs, errors)) < 3
    assert 0.4 < float(np.std(errors)) < 1.7  # the standard error is neither far too large nor too small
    assert abs(float(np.mean(errors))) < 3 / math.sqrt(len(errors))


@torch.no_grad()
def chain_rule(model, policy, text, prompt):
    """-log p of each token after the prompt, in nats, from one pass with a mask in the token's place."""
    set_policy(model, policy, 1)
    return sum(cross_entropies(model, policy, text, [i], prompt, 1)[i] for i in range(prompt, len(text)))


@pytest.mark.parametrize("policy", ["block", "block_causal", "window"])
def test_blocks_of_one_token_give_the_chain_rule(model, policy):
    texts, prompts = [TEXTS[1], TEXTS[3], TEXTS[5]], [PROMPTS[1], PROMPTS[3], PROMPTS[5]]
    pairs = [(text[:prompt], text[prompt:]) for text, prompt in zip(texts, prompts, strict=True)]
    found = log_likelihood(model, pairs, policy=policy, block_length=1, rounds=5)
    for bound, text, prompt in zip(found, texts, prompts, strict=True):
        assert -bound.nats == pytest.approx(chain_rule(model, policy, text, prompt), rel=1e-5)
        assert bound.standard_error == 0
    again = log_likelihood(model, pairs, policy=policy, block_length=1, rounds=1, seed=9)
    assert again == found
    assert estimate(model, texts, policy=policy, block_length=1, rounds=5).nats.shape == (3, 1)  # drawn once


def test_pairs_of_unequal_length_are_as_one_by_one(model):
    for policy in PLANS:
        together = estimate(model, TEXTS, policy=policy, block_length=4, rounds=2, prompt_lengths=PROMPTS)
        for number, (text, prompt) in enumerate(zip(TEXTS, PROMPTS, strict=True)):
            alone = estimate(
                model, [text], policy=policy, block_length=4, rounds=2, prompt_lengths=[prompt], keys=[number]
            )
            assert alone.nats[0].tolist() == pytest.approx(together.nats[number].tolist(), rel=1e-5)


def test_batches_and_processes_change_nothing(model):
    model.config.attention_policy, model.config.block_length = "block_causal", 4
    whole = nelbo(model, TEXTS, prompt_lengths=PROMPTS)
    for batch_tokens in (1, 50, 120):
        other = nelbo(model, TEXTS, prompt_lengths=PROMPTS, batch_tokens=batch_tokens)
        assert (other.nats, other.standard_error) == pytest.approx((whole.nats, whole.standard_error), rel=1e-5)
    one = estimate(model, TEXTS, batch_tokens=100)
    parts = [estimate(model, TEXTS, batch_tokens=100, share=(i, 3)) for i in range(3)]
    assert all((part.nats == 0).any() for part in parts)
    assert parts[0].reduced(lambda x: x + sum(p.nats if x.ndim == 2 else p.levels for p in parts[1:])).per_token() == (
        one.per_token()
    )
    assert np.array_equal(sum(part.nats for part in parts), one.nats)


def test_bfloat16_is_within_rounding(model):
    for policy in ("full", "block_causal"):
        exact = nelbo(model, TEXTS, policy=policy, block_length=4)
        rounded = nelbo(make_model().eval().bfloat16(), TEXTS, policy=policy, block_length=4)
        assert rounded.nats == pytest.approx(exact.nats, rel=0.02)
        assert rounded.nats != exact.nats


def test_the_standard_error_is_that_of_a_ratio(model):
    found = estimate(model, TEXTS, policy="full", rounds=2)
    means, tokens = found.nats.mean(1), np.array([len(text) for text in TEXTS])
    rest = means - means.sum() / tokens.sum() * tokens
    expected = math.sqrt(6 * rest.var(ddof=1)) / tokens.sum()
    bound = found.per_token()
    assert bound == Bound(means.sum() / tokens.sum(), pytest.approx(expected), 52)
    assert bound.perplexity == pytest.approx(math.exp(bound.nats))
    (pair,) = log_likelihood(model, [([1, 2], [3, 4, 5])], policy="full", rounds=6)
    rows = estimate(model, [[1, 2, 3, 4, 5]], policy="full", rounds=6, prompt_lengths=[2]).nats[0]
    assert pair.standard_error == pytest.approx(rows.std(ddof=1) / math.sqrt(6))
    assert math.isnan(log_likelihood(model, [([1, 2], [3, 4, 5])], policy="full", rounds=1)[0].standard_error)


def test_counts_are_stratified_over_rounds_and_blocks():
    blocks = np.repeat([0, 1, 2], 8)
    for key in range(20):
        drawn = mask_rounds(blocks, 8, seed=3, key=key)
        for block in range(3):
            own = drawn.counts[:, blocks == block]
            assert sorted(own[:, 0].tolist()) == list(range(1, 9))
            assert (drawn.masked[:, blocks == block].sum(1) == own[:, 0]).all()
    alone = mask_rounds(blocks, 1, seed=3, key=5).counts[0, ::8]
    assert len(set(((alone - 1) * 3 // 8).tolist())) == 3  # three blocks, three parts of the range
    assert not np.array_equal(mask_rounds(blocks, 8, seed=3, key=5).masked, drawn.masked)


def test_noise_levels_hold_every_masked_position(model):
    found = estimate(model, TEXTS, policy="full", rounds=5)
    sums, counts = found.by_level()
    drawn = [mask_rounds(np.zeros(len(t), int), 5, seed=0, key=i) for i, t in enumerate(TEXTS)]
    assert sum(counts) == sum(rounds.masked.sum() for rounds in drawn)
    expected = np.zeros(10)
    for rounds in drawn:
        np.add.at(expected, (rounds.levels[rounds.masked] * 10).astype(int), 1)
    assert counts == expected.tolist()
    assert all((s > 0) == (n > 0) for s, n in zip(sums, counts, strict=True))


def test_the_model_is_left_as_it_was(model):
    model.train()
    before = model.config.to_dict()
    estimate(model, TEXTS, policy="alternate:block_causal,window", block_length=4)
    assert model.config.to_dict() == before
    assert model.training


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"policy": "causal"}, "must be one of full, block"),
        ({"policy": "alternate:full,window"}, "must not mix"),
        ({"block_length": 0}, "block_length=0 must be in"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be in"),
        ({"batch_tokens": 0}, "batch_tokens=0 must be at least 1"),
        ({"prompt_lengths": [0, 1]}, "prompt_lengths must hold one number for each of 1 sequences, given 2"),
        ({"prompt_lengths": [3]}, r"sequences\[0\] of 3 tokens must have at least one token after its prompt of 3"),
        ({"sequences": []}, "must hold at least one, given none"),
        ({"sequences": [[]]}, r"sequences\[0\] of 0 tokens must have at least one"),
        ({"sequences": [[1, 99]]}, r"sequences\[0\] holds token 99, must be in \[0, 67\)"),
        ({"sequences": [[1, MASK]]}, r"sequences\[0\] holds the mask token 66"),
        ({"sequences": [[1] * 40_000]}, "must not exceed the model's max_position_embeddings"),
    ],
)
def test_what_cannot_be_is_one_line(model, given, said):
    with pytest.raises(InputError, match=said):
        nelbo(model, **({"sequences": [[1, 2, 3]]} | given))


def test_a_bound_that_is_no_number_names_the_sequence(model):
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match=r"sequences\[0\]: its likelihood bound is nan, not a finite number"):
        nelbo(model, [[1, 2, 3]])
