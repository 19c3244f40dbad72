"""Noise: distributions against closed forms, positions that it must never change, dependence on its key alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from qwen3llada.diffusion.corruption import NoiseParams, add_noise, random_lengths
from qwen3llada.diffusion.levels import mask_probabilities, noise_levels
from qwen3llada.diffusion.schedules import SCHEDULES

MASK = 99
REAL = torch.arange(10, 60)  # ids below are "special", ids above are padding slack
# p(t) solved for t: the cumulative distribution of p under uniform t.
INVERSE = {
    "uniform": lambda p: p,
    "cosine": lambda p: 2 / math.pi * np.arcsin(p),
    "power": lambda p: 1 - np.sqrt(1 - p),
    "sigmoid": lambda p: 1 - (np.log((g := _sigmoid_at(p)) / (1 - g)) + 3) / 6,
}
ALPHA = 1e-4  # the draws are keyed, so a test that passed once always passes


def _sigmoid_at(p):
    low, high = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
    return high - p * (high - low)


def tokens(batch, length):
    return torch.from_numpy(np.random.default_rng(0).integers(10, 60, (batch, length)))


def noise(clean, params=NoiseParams(), *, first=0, seed=3, epoch=1, **kwargs):
    kwargs.setdefault("indices", torch.arange(first, first + len(clean)))
    return add_noise(clean, params, mask_token_id=MASK, seed=seed, epoch=epoch, real_tokens=REAL, **kwargs)


def constant_p(p, **kwargs):
    """A schedule that stays below `p` until the end, so that the clamp makes it `p` for every sample."""
    return NoiseParams(schedule="power", power=1e-9, eps=1e-9, min_masking_rate=p, **kwargs)


@pytest.mark.parametrize("name", SCHEDULES)
def test_distribution_of_p(name):
    params = NoiseParams(schedule=name, eps=0.01)
    p = mask_probabilities(noise_levels(torch.arange(20_000), seed=1, epoch=0), params).double().numpy()
    result = stats.kstest((p - params.eps) / (1 - params.eps), lambda x: INVERSE[name](np.clip(x, 0, 1)))
    assert result.pvalue > ALPHA
    assert result.statistic < 5e-4  # stratified: independent draws would give about 6e-3


def test_power_is_the_exponent():
    t = torch.tensor([0.5], dtype=torch.float64)
    p = mask_probabilities(t, NoiseParams(schedule="power", power=3.0, eps=1e-9))
    assert p.item() == pytest.approx(0.875, abs=1e-7)


@pytest.mark.parametrize("run", [4, 16, 100])
def test_levels_are_stratified(run):
    t = noise_levels(torch.arange(5000), seed=5, epoch=2).numpy()
    for start in range(0, 4800, 37):
        window = np.sort(t[start : start + run])
        assert np.diff([*window, window[0] + 1]).max() < 2 / run


def test_levels_start_anywhere():
    starts = [
        noise_levels(torch.tensor([0]), seed=seed, epoch=epoch).item() for seed in range(40) for epoch in range(25)
    ]
    assert stats.kstest(starts, "uniform").pvalue > ALPHA


def test_levels_keep_their_precision_at_any_index():
    t = noise_levels(torch.tensor([2**62, 2**62 + 1]), seed=0, epoch=0)
    assert (t[1] - t[0]).item() % 1 == pytest.approx((math.sqrt(5) - 1) / 2, abs=1e-12)


def test_masked_fraction_given_p():
    length = 64
    noised = noise(tokens(4000, length), NoiseParams(min_masking_rate=0.2))
    p = noised.p_mask.double()
    spread = (noised.masked.sum(1) - length * p) / (length * p * (1 - p)).sqrt()
    assert p.min().item() == pytest.approx(0.2)
    assert abs(spread.mean().item()) < 4 / math.sqrt(4000)
    # Independent positions: the count is binomial, so the variance of its standardised form is 1.
    assert (spread**2).mean().item() == pytest.approx(1, abs=4 * math.sqrt(2 / 4000))
    columns = (noised.masked.double() - p[:, None]).sum(0) / (p * (1 - p)).sum().sqrt()
    assert columns.abs().max().item() < 4.5


def test_p_mask_is_the_probability_used():
    params = NoiseParams(schedule="cosine", eps=0.02, min_masking_rate=0.3)
    noised = noise(tokens(8, 3), params, first=5)
    t = noise_levels(torch.arange(5, 13), seed=3, epoch=1)
    expected = [max(0.98 * math.sin(math.pi / 2 * x) + 0.02, 0.3) for x in t.tolist()]
    assert noised.p_mask.tolist() == pytest.approx(expected, rel=1e-6)
    assert noised.p_mask.dtype == torch.float32


@pytest.mark.parametrize("span_probability", [0.0, 1.0])
def test_no_mask_is_forced(span_probability):
    """Of 4000 sequences of 5 tokens with p = 0.05 a binomial number stays unmasked; a span has length 0."""
    clean = tokens(4000, 5)
    noised = noise(clean, constant_p(0.05, mask_contiguous_region_prob=span_probability))
    whole = int((~noised.masked.any(1)).sum())
    if span_probability:
        assert whole == 4000
    else:
        assert stats.binomtest(whole, 4000, 0.95**5).pvalue > ALPHA
    assert torch.equal(noised.tokens[~noised.masked], clean[~noised.masked])


@pytest.mark.parametrize("span_probability", [0.0, 1.0])
def test_at_least_one_is_masked_uniformly(span_probability):
    params = constant_p(1e-6, mask_contiguous_region_prob=span_probability)
    noised = noise(tokens(4000, 5), params, at_least_one=True)
    assert (noised.masked.sum(1) == 1).all()
    assert stats.chisquare(noised.masked.sum(0).numpy()).pvalue > ALPHA


def test_at_least_one_is_masked_uniformly_where_blocks_have_levels():
    """Spans of both blocks are empty at p = 1e-3."""
    clean = tokens(8000, 8)
    levels = torch.tensor([1e-6] * 4 + [2e-6] * 4).double().expand(8000, -1)
    noised = noise(clean, NoiseParams(mask_contiguous_region_prob=1.0), levels=levels, at_least_one=True)
    assert (noised.masked.sum(1) == 1).all()
    assert noised.masked.float().mean(0).sub(1 / 8).abs().max() < 0.015


@pytest.mark.parametrize("span_probability", [0.0, 0.5])
def test_at_least_one_changes_empty_masks_alone(span_probability):
    clean, params = tokens(2000, 5), NoiseParams(mask_contiguous_region_prob=span_probability)
    drawn, forced = noise(clean, params).masked, noise(clean, params, at_least_one=True).masked
    empty = ~drawn.any(1)
    assert 100 < empty.sum() < 1000
    assert torch.equal(drawn[~empty], forced[~empty])
    assert (forced[empty].sum(1) == 1).all()


def test_min_masking_rate_one_masks_everything():
    noised = noise(tokens(8, 33), NoiseParams(min_masking_rate=1.0), prompt_lengths=torch.arange(8))
    assert (noised.p_mask == 1).all()
    assert (noised.masked == (torch.arange(33) >= torch.arange(8)[:, None])).all()


def test_eps_one_masks_everything():
    assert noise(tokens(8, 33), NoiseParams(eps=1.0)).masked.all()


@pytest.mark.parametrize("span_probability", [0.0, 1.0])
def test_one_maskable_position_is_masked(span_probability):
    params = NoiseParams(mask_contiguous_region_prob=span_probability)
    assert noise(tokens(50, 1), params, at_least_one=True).masked.all()
    noised = noise(
        tokens(50, 9),
        params,
        prompt_lengths=torch.full((50,), 4),
        valid=(torch.arange(9) < 5).expand(50, 9),
        at_least_one=True,
    )
    assert torch.equal(noised.masked, (torch.arange(9) == 4).expand(50, 9))


@pytest.mark.parametrize("span_probability", [0.0, 1.0])
@pytest.mark.parametrize("noise_type", ["mask", "random_replace"])
def test_nothing_maskable_nothing_masked(span_probability, noise_type):
    params = NoiseParams(mask_contiguous_region_prob=span_probability, noise_type=noise_type)
    clean = tokens(6, 7)
    for untouchable in ({"prompt_lengths": torch.full((6,), 7)}, {"valid": torch.zeros(6, 7, dtype=torch.bool)}):
        noised = noise(clean, params, at_least_one=True, **untouchable)
        assert not noised.masked.any()
        assert torch.equal(noised.tokens, clean)


@pytest.mark.parametrize("noise_type", ["mask", "random_replace"])
@pytest.mark.parametrize("span_probability", [0.0, 0.5, 1.0])
def test_prompt_and_padding_are_untouched(noise_type, span_probability):
    rng = np.random.default_rng(1)
    lengths = torch.from_numpy(rng.integers(1, 41, 200))
    prompts = torch.from_numpy(np.floor(rng.random(200) * lengths.numpy()).astype(np.int64))
    clean, columns = tokens(200, 40), torch.arange(40)
    valid = columns < lengths[:, None]
    noised = noise(
        clean,
        NoiseParams(noise_type=noise_type, mask_contiguous_region_prob=span_probability),
        valid=valid,
        prompt_lengths=prompts,
        at_least_one=True,
    )
    answer = valid & (columns >= prompts[:, None])
    assert not (noised.masked & ~answer).any()
    assert noised.masked.any(1).all()
    assert torch.equal(noised.tokens[~noised.masked], clean[~noised.masked])
    if noise_type == "mask":
        assert (noised.tokens[noised.masked] == MASK).all()
    else:
        assert torch.isin(noised.tokens[noised.masked], REAL).all()


@pytest.mark.parametrize("at_least_one", [False, True])
def test_spans_are_contiguous_and_as_long_as_p_says(at_least_one):
    prompts = torch.arange(500) % 7
    lengths = 12 + torch.arange(500) % 29
    noised = noise(
        tokens(500, 40),
        NoiseParams(mask_contiguous_region_prob=1.0),
        prompt_lengths=prompts,
        valid=torch.arange(40) < lengths[:, None],
        at_least_one=at_least_one,
    )
    for masked, p, maskable in zip(noised.masked, noised.p_mask.tolist(), (lengths - prompts).tolist(), strict=True):
        where = masked.nonzero().flatten()
        assert len(where) == max(int(at_least_one), round(p * maskable))
        assert not len(where) or where[-1] - where[0] == len(where) - 1


def test_spans_start_anywhere():
    noised = noise(tokens(4000, 20), constant_p(0.25, mask_contiguous_region_prob=1.0))
    assert (noised.masked.sum(1) == 5).all()
    starts = np.bincount(noised.masked.int().argmax(1).numpy(), minlength=16)
    assert len(starts) == 16
    assert stats.chisquare(starts).pvalue > ALPHA


def test_share_of_spans():
    noised = noise(tokens(4000, 60), constant_p(0.5, mask_contiguous_region_prob=0.3))
    changes = (noised.masked[:, 1:] != noised.masked[:, :-1]).sum(1)
    assert stats.binomtest(int((changes <= 2).sum()), 4000, 0.3).pvalue > ALPHA


def test_spans_do_not_depend_on_cuts():
    noised = noise(tokens(4000, 60), constant_p(0.5, mask_contiguous_region_prob=0.3))
    is_span = ((noised.masked[:, 1:] != noised.masked[:, :-1]).sum(1) <= 2).numpy()
    is_cut = random_lengths(np.full(4000, 1000), 0.3, indices=np.arange(4000), seed=3, epoch=1) < 1000
    table = [
        [(is_span & is_cut).sum(), (is_span & ~is_cut).sum()],
        [(~is_span & is_cut).sum(), (~is_span & ~is_cut).sum()],
    ]
    assert stats.chi2_contingency(table).pvalue > ALPHA


def test_replacements_are_uniform_and_masks_the_same():
    clean = torch.full((400, 250), 7)
    masked = noise(clean).masked
    noised = noise(clean, NoiseParams(noise_type="random_replace"))
    assert torch.equal(noised.masked, masked)
    assert (noised.tokens[~masked] == 7).all()
    counts = np.bincount(noised.tokens[masked].numpy(), minlength=100)
    assert counts[:10].sum() == counts[60:].sum() == 0
    assert stats.chisquare(counts[10:60]).pvalue > ALPHA


def test_random_lengths():
    full, indices = np.full(8000, 20), np.arange(8000)
    key: dict[str, Any] = {"indices": indices, "seed": 0, "epoch": 0}
    assert (random_lengths(full, 0.0, **key) == 20).all()
    always = random_lengths(full, 1.0, **key)
    assert always.min() == 1
    assert stats.chisquare(np.bincount(always, minlength=21)[1:]).pvalue > ALPHA
    some = random_lengths(np.full(8000, 1000), 0.3, **key)
    assert stats.binomtest(int((some < 1000).sum()), 8000, 0.3 * 0.999).pvalue > ALPHA
    assert (random_lengths(np.ones(50, dtype=np.int64), 1.0, indices=np.arange(50), seed=0, epoch=0) == 1).all()


VARIANTS = [
    NoiseParams(),
    NoiseParams(schedule="sigmoid", noise_type="random_replace", mask_contiguous_region_prob=0.5, min_masking_rate=0.1),
]


@pytest.mark.parametrize("params", VARIANTS)
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_batches_change_nothing(params, batch):
    clean, prompts = tokens(16, 30), torch.arange(16)
    whole = noise(clean, params, prompt_lengths=prompts, first=7)
    for start in range(0, 16, batch):
        rows = slice(start, start + batch)
        part = noise(clean[rows], params, prompt_lengths=prompts[rows], first=7 + start)
        assert all(torch.equal(a, b[rows]) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize("params", VARIANTS)
def test_order_and_padding_change_nothing(params):
    clean, order = tokens(16, 30), torch.from_numpy(np.random.default_rng(2).permutation(16))
    whole = noise(clean, params)
    shuffled = noise(clean[order], params, indices=order)
    assert all(torch.equal(a, b[order]) for a, b in zip(shuffled, whole, strict=True))
    wider = torch.nn.functional.pad(clean, (0, 11))
    padded = noise(wider, params, valid=(torch.arange(41) < 30).expand(16, 41))
    assert torch.equal(padded.tokens[:, :30], whole.tokens)
    assert torch.equal(padded.p_mask, whole.p_mask)


def test_each_part_of_the_key_counts():
    clean = tokens(4, 200)
    base = noise(clean)
    for other in (noise(clean, seed=4), noise(clean, epoch=2), noise(clean, first=4)):
        assert not torch.equal(other.masked, base.masked)
        assert not torch.equal(other.p_mask, base.p_mask)


def test_the_global_generators_are_neither_read_nor_moved():
    clean = tokens(4, 50)
    params = VARIANTS[1]
    base = noise(clean, params)
    torch.manual_seed(123)
    np.random.seed(123)
    torch_state, numpy_state = torch.get_rng_state(), repr(np.random.get_state())
    again = noise(clean, params)
    assert all(torch.equal(a, b) for a, b in zip(again, base, strict=True))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert repr(np.random.get_state()) == numpy_state


# --- A noise level for each position ---


@pytest.mark.parametrize("params", [NoiseParams(), NoiseParams(schedule="sigmoid", noise_type="random_replace")])
@pytest.mark.parametrize("at_least_one", [False, True])
def test_the_same_level_everywhere_gives_the_bits_of_one_for_the_sequence(params, at_least_one):
    clean, t = tokens(16, 30), noise_levels(torch.arange(16), seed=3, epoch=1)
    drawn = noise(clean, params, at_least_one=at_least_one)
    given = noise(clean, params, at_least_one=at_least_one, levels=t)
    each = noise(clean, params, at_least_one=at_least_one, levels=t[:, None].expand(16, 30))
    assert all(torch.equal(a, b) for a, b in zip(given, drawn, strict=True))
    assert torch.equal(each.p_mask, drawn.p_mask[:, None].expand(16, 30))
    assert all(torch.equal(a, b) for a, b in zip(each[:2], drawn[:2], strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_probabilities_of_positions_are_those_of_sequences(schedule):
    """Equal bit for bit for any number of levels, and if some are equal."""
    params = NoiseParams(schedule=schedule, eps=0.02)
    t = noise_levels(torch.arange(60), seed=1, epoch=0)
    t[7] = t[3]
    p = mask_probabilities(t, params)
    assert torch.equal(mask_probabilities(t.view(5, 12), params), p.view(5, 12))
    one_by_one = torch.cat([mask_probabilities(level[None], params) for level in t])
    assert torch.equal(p, one_by_one)


def test_positions_are_masked_with_their_own_probability():
    rows, p = 4000, torch.tensor([0.05, 0.3, 0.5, 0.9, 1.0])
    params = NoiseParams(eps=1e-9)
    noised = noise(tokens(rows, 5), params, levels=p.double().expand(rows, 5))
    assert torch.allclose(noised.p_mask, p.expand(rows, 5), atol=1e-7)
    counts = noised.masked.sum(0).tolist()
    assert counts[4] == rows
    assert all(stats.binomtest(n, rows, x).pvalue > ALPHA for n, x in zip(counts[:4], p.tolist(), strict=False))
    correlation = np.corrcoef(noised.masked[:, :4].double().numpy().T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(rows)


def test_levels_that_do_not_fit():
    for shape in ((3,), (4, 1), (4, 6), (4, 5, 1)):
        with pytest.raises(ValueError, match="levels of shape"):
            noise(tokens(4, 5), levels=torch.full(shape, 0.5))


def test_an_empty_batch():
    noised = noise(tokens(0, 5), NoiseParams(mask_contiguous_region_prob=0.5))
    assert [tuple(part.shape) for part in noised] == [(0, 5), (0, 5), (0,)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": torch.arange(3)}, "as many as the rows"),
        ({"indices": torch.tensor([0, -1])}, "0 or more"),
        ({"valid": torch.ones(2, 4, dtype=torch.bool)}, "valid of shape"),
        ({"prompt_lengths": torch.ones(3, dtype=torch.long)}, "prompt_lengths of shape"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        noise(tokens(2, 5), **change)


@pytest.mark.parametrize("real", [None, [], [1, MASK]])
def test_bad_replacements(real):
    with pytest.raises(ValueError, match="real_tokens must"):
        add_noise(
            tokens(2, 5),
            NoiseParams(noise_type="random_replace"),
            mask_token_id=MASK,
            indices=torch.arange(2),
            seed=0,
            epoch=0,
            real_tokens=real,
        )


@pytest.mark.parametrize(
    "bad",
    [
        {"schedule": "linear"},
        {"noise_type": "swap"},
        {"eps": 0.0},
        {"eps": 1.1},
        {"power": 0.0},
        {"min_masking_rate": 1.1},
        {"mask_contiguous_region_prob": -0.1},
        {"reweight_cap": 0.0},
        {"random_length_prob": 2.0},
        {"unknown": 1},
    ],
)
def test_bad_params(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        NoiseParams(**bad)


def test_each_stretch_of_one_level_has_a_span_of_its_own():
    """Two blocks of 6 at levels 0.5 and 1/3: one run of 3 and one of 2 positions, whose starts are not one."""
    rows = 400
    levels = torch.tensor([0.5] * 6 + [1 / 3] * 6).double().expand(rows, 12)
    noised = noise(tokens(rows, 12), NoiseParams(mask_contiguous_region_prob=1.0, eps=1e-9), levels=levels)
    starts = set()
    for row in noised.masked.tolist():
        first, second = ([i for i, masked in enumerate(block) if masked] for block in (row[:6], row[6:]))
        assert first == list(range(first[0], first[0] + 3))
        assert second == list(range(second[0], second[0] + 2))
        starts.add((first[0], second[0]))
    assert len(starts) == 4 * 5


def test_hybrid_noise_replaces_a_share_and_masks_the_rest():
    rows, length, share = 300, 40, 0.25
    params = NoiseParams(noise_type="hybrid", replace_share=share)
    noised = noise(tokens(rows, length), params)
    replaced = noised.masked & (noised.tokens != MASK)
    assert ((noised.tokens != tokens(rows, length)) <= noised.masked).all()
    found = int(replaced.sum()), int(noised.masked.sum())
    assert stats.binomtest(*found, share).pvalue > ALPHA
    assert set(noised.tokens[replaced].unique().tolist()) <= set(torch.as_tensor(REAL).tolist())


def test_levels_keep_to_their_range():
    indices = torch.arange(1000)
    t = noise_levels(indices, seed=1, epoch=0, t_range=(0.3, 0.8))
    assert 0.3 <= t.min() < 0.31
    assert 0.79 < t.max() < 0.8
    assert torch.allclose(t, 0.3 + 0.5 * noise_levels(indices, seed=1, epoch=0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"power": 3.0}, "power=3.0 has no effect under schedule=uniform: leave it at 2.0"),
        ({"replace_share": 0.5}, "replace_share=0.5 has no effect under noise_type=mask: leave it at 0.1"),
        (
            {"schedule": "power", "stages": [{"until": 1.0, "schedule": "cosine", "power": 3.0}]},
            r"stages: until=1.0: power=3.0 has no effect under schedule=cosine",
        ),
        (
            {"stages": [{"until": 1.0, "epss": 0.1}]},
            r"stages: until=1.0: epss: unknown key \(did you mean eps\?\); allowed: eps, ",
        ),
        ({"power": 3.0, "stages": [{"until": 1.0, "schedule": "cosine"}]}, "power=3.0 has no effect"),
    ],
)
def test_a_knob_without_effect_is_refused_unless_it_has_its_default(given, said):
    stated = NoiseParams().model_dump()
    assert NoiseParams.model_validate(stated) == NoiseParams()
    with pytest.raises(ValueError, match=said):
        NoiseParams.model_validate(stated | given)


def test_a_knob_of_the_section_may_be_for_some_of_the_stages():
    stages = [{"until": 0.5, "schedule": "cosine"}, {"until": 1.0, "schedule": "power"}]
    noise = NoiseParams(power=3.0, stages=stages)
    assert [(part.schedule, part.power) for part in noise.all()] == [("cosine", 2.0), ("power", 3.0)]
    assert noise.at(0.7) == NoiseParams(schedule="power", power=3.0)
