"""The head's kernels against the plain head: in Triton's interpreter, and on a GPU."""

import itertools
import math

import pytest
import torch

triton = pytest.importorskip("triton")
UNITS, WIDTH, VOCAB, MASK = 2, 4, 300, 299
STEP = 2
REMASKING = ["low_confidence", "random", "random_topk", "entropy", "margin"]
UNMASK = {"fixed": {}, "threshold": {"confidence_threshold": 0.6}, "factor": {"factor": 1.2}}
UNMASK |= {"entropy_bound": {"entropy_bound": 1.5}}
SETTINGS = [
    {"remasking": remasking, "temperature": temperature, "cfg_scale": scale, "position_temperature": position}
    for remasking, temperature, scale, position in itertools.product(REMASKING, [0, 0.8], [0, 1.5], [0, 0.4])
    if scale == 0 or position == 0
]


def inputs(vocab=VOCAB, spread=3.0, units=UNITS, width=WIDTH):
    """Logits with and without the prompt, masked positions, the units' keys and shares."""
    generator = torch.Generator().manual_seed(vocab)
    logits, without = (torch.randn(units * width, vocab, generator=generator) * spread for _ in range(2))
    logits[0, 7:9] = logits[0].max() + 1  # a tie, which the lower token wins
    logits[1, MASK % vocab] = 100.0
    logits[2, 3] = 60.0  # a probability next to 1
    masked = torch.rand(units, width, generator=generator) < 0.7
    masked[0, : min(3, width)] = True
    keys = torch.randint(-(2**62), 2**62, (units,), generator=generator)
    return logits, without, masked, keys, torch.arange(3, 3 + units)


def of_units(params, units, device):
    """Knobs [5, U] and steps [U] of units that agree in both."""
    from qwen3llada.sampling.cuda.logits_kernel import knob_values

    steps = torch.full((units,), STEP, dtype=torch.int32, device=device)
    return knob_values(params)[:, None].repeat(1, units).to(device), steps


def plain(logits, without, masked, keys, shares, counts, params):
    """Tokens [N], log probabilities, scores and the committed positions [U, W], by the plain sampler's functions."""
    from qwen3llada.sampling import keyed_gumbel as noise
    from qwen3llada.sampling.head import Head
    from qwen3llada.sampling.remasking import annealed
    from qwen3llada.sampling.unmasking import UNMASKING, Candidates

    width, unmasking = masked.shape[1], UNMASKING[params.unmask]
    head = Head(
        project=lambda states: states.clone(),
        vocab_size=logits.shape[1],
        mask_token_id=MASK % logits.shape[1],
        temperature=params.temperature,
        cfg_scale=params.cfg_scale,
        remasking=params.remasking,
        position_temperature=params.position_temperature,
        entropy=True,
    )
    streams = noise.step_keys(keys, STEP, width).flatten(1)
    temperature = annealed(params.remasking_temperature, STEP, shares).repeat_interleave(width)
    found = head.propose(logits, without if params.cfg_scale else None, *streams, temperature)
    values = [value.view(masked.shape) for value in (found.scores, found.log_probs.exp(), found.entropy)]
    candidates = Candidates(
        masked=masked, counts=counts, **dict(zip(("score", "confidence", "entropy"), values, strict=True))
    )
    bound = getattr(params, unmasking.knob) if unmasking.knob else 0.0
    return found, unmasking.choose(candidates, bound)


def fused(logits, without, masked, keys, shares, counts, params, device, own=None):
    """The same by the kernels: proposals, and canvas, masked, taken and confidence after the commits.

    own: knobs [5, U] and steps [U] of the units, where they differ.
    """
    from qwen3llada.sampling.cuda.commit_kernels import commit_proposals
    from qwen3llada.sampling.cuda.logits_kernel import Form, Parts, read_logits
    from qwen3llada.sampling.cuda.proposal_kernel import Proposals, propose
    from qwen3llada.sampling.remasking import SCORES

    form, (units, width) = Form.of(params), masked.shape
    logits, without, masked, keys, shares = (x.to(device) for x in (logits, without, masked.clone(), keys, shares))
    parts, proposals = Parts.empty(units * width, logits.shape[1], device), Proposals.empty(units * width, device)
    knobs, steps = own or of_units(params, units, device)
    places = torch.randperm(units * width).to(device)
    rows = without[places] if form.guided else None
    common = {"form": form, "mask_token": MASK % logits.shape[1], "width": width}
    read_logits(logits[places], rows, places, masked, keys, steps, knobs, parts, **common)
    assert not parts.values[:, ~masked.flatten()].any()  # their logits are not read
    logarithmic = SCORES[params.remasking].logarithmic
    propose(parts, masked, keys, shares, steps, knobs, proposals, form=form, logarithmic=logarithmic)
    canvas = torch.full((units, width + 2), -1, device=device)
    taken, confidence = torch.ones_like(masked), torch.full((units, width), -1.0, device=device)
    table = torch.zeros(units, 4, dtype=torch.int32, device=device)
    table[torch.arange(units), steps.long()] = counts.to(device, torch.int32)
    origins = torch.arange(units, device=device) * (width + 2) + 1
    commit_proposals(proposals, canvas, masked, taken, confidence, origins, table, steps, knobs, unmask=params.unmask)
    return [*(x.cpu() for x in proposals)], [x.cpu() for x in (canvas, masked, taken, confidence)]


def compare(given, counts, params, device):
    from qwen3llada.sampling.cuda.logits_kernel import Form

    masked = given[2]
    found, taken = plain(*given, counts, params)
    (tokens, log_probs, scores, entropy), (canvas, still, committed, confidence) = fused(*given, counts, params, device)
    where = masked.flatten()
    close = {"rtol": 2e-6, "atol": 2e-6}
    assert torch.equal(tokens[where].long(), found.tokens[where])
    torch.testing.assert_close(log_probs[where], found.log_probs[where], **close)
    torch.testing.assert_close(scores[where], found.scores[where], **close)
    assert (scores[~where] == -torch.inf).all()
    if Form.of(params).entropy:
        torch.testing.assert_close(entropy[where], found.entropy[where], **close)
    assert torch.equal(committed, taken)
    assert torch.equal(still, masked & ~taken)
    expected = torch.full_like(canvas, -1)
    expected[:, 1:-1] = torch.where(taken, found.tokens.view(taken.shape), -1)
    assert torch.equal(canvas, expected)
    sure = torch.where(taken, found.log_probs.exp().view(taken.shape).float(), -1.0)
    torch.testing.assert_close(confidence, sure, **close)


def compare_all(device):
    from qwen3llada.sampling.params import DecodeParams

    given, counts = inputs(), torch.tensor([2, 1])
    for setting in SETTINGS if device != "cpu" else SETTINGS[4::7]:  # the interpreter is slow
        compare(given, counts, DecodeParams(**setting), device)
    for unmask, knob in UNMASK.items():
        compare(given, counts, DecodeParams(unmask=unmask, **knob, temperature=0.8, remasking="margin"), device)
        if knob:  # nothing is sure enough: the best by score
            never = {name: 1.0 if name == "confidence_threshold" else 0.0 for name in knob}
            compare(given, counts, DecodeParams(unmask=unmask, remasking="random", **never), device)


def compare_wide_blocks_and_vocabularies(device):
    """More columns than a program takes, more tokens than a tile."""
    from qwen3llada.sampling.params import DecodeParams

    for vocab, units, width in ((1_100, 1, 3), (40, 1, 66), (7, 4, 1)):
        given, counts = inputs(vocab, units=units, width=width), torch.full((units,), 70)
        for setting in ({"temperature": 1.0, "remasking": "margin", "unmask": "factor"}, {"unmask": "entropy_bound"}):
            compare(given, counts, DecodeParams(**setting, entropy_bound=9.0), device)


def compare_several_tiles(device):
    """Parts of several tiles, so that each lane sees several tokens."""
    from qwen3llada.sampling.cuda import logits_kernel
    from qwen3llada.sampling.params import DecodeParams

    kept, logits_kernel.VOCABULARY_TILE = logits_kernel.VOCABULARY_TILE, 16
    try:
        given, counts = inputs(300, units=1, width=3), torch.tensor([2])
        given[0][:, 20], given[0][:, 36] = 20.0, 19.5  # the largest two in one lane
        for setting in ({"remasking": "margin"}, {"remasking": "entropy", "temperature": 1.0}):
            compare(given, counts, DecodeParams(**setting), device)
    finally:
        logits_kernel.VOCABULARY_TILE = kept


def unit_key_of(word):
    """The key of a unit whose first position draws this first word: SplitMix64 and the folds backwards."""
    from plain_sampler import GOLDEN, splitmix

    def unshifted(x, bits):  # the inverse of x ^ (x >> bits)
        found = x
        for _ in range(64 // bits):
            found = x ^ (found >> bits)
        return found

    def unmixed(x):
        x = unshifted(x, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
        return unshifted(unshifted(x, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64, 30)

    key = (unmixed(word) - GOLDEN) % 2**64
    for value in (0, 0, STEP):  # position, stream of the tokens, step
        key = unmixed(key) ^ int(splitmix((value + GOLDEN) % 2**64))
    return key - 2**64 if key >= 2**63 else key


def compare_extreme_noise(device):
    """Numbers of the rarest words: u next to 0, 1/2 and 1."""
    from qwen3llada.sampling.cuda.logits_kernel import Form, Parts, read_logits
    from qwen3llada.sampling.params import DecodeParams

    words = [0, 2**20, 2**40, 2**60, 2**63 - 2**12, 2**63, 2**64 - 2**60, 2**64 - 2**58]
    words += [2**64 - 2**33, 2**64 - 2**24, 2**64 - 2**20, 2**64 - 2**13, 2**64 - 1]
    keys, params = torch.tensor([unit_key_of(word) for word in words]), DecodeParams(temperature=1.0)
    logits = torch.tensor([[0.0, -1e20]]).repeat(len(words), 1)
    parts = Parts.empty(len(words), 2, device)
    places, (knobs, steps) = torch.arange(len(words), device=device), of_units(params, len(words), device)
    common = {"form": Form.of(params), "mask_token": -1, "width": 1}
    masked = torch.ones(len(words), 1, dtype=torch.bool, device=device)
    read_logits(logits.to(device), None, places, masked, keys.to(device), steps, knobs, parts, **common)
    exact = []
    for word in words:
        below, above = (word >> 12) + 0.5, 2**52 - (word >> 12) - 0.5  # u and 1 - u, times 2^52
        exact.append(-math.log(-math.log(below / 2**52) if below < above else -math.log1p(-above / 2**52)))
    found = parts.values[4, :, 0].cpu().double()
    torch.testing.assert_close(found, torch.tensor(exact, dtype=torch.float64), rtol=2e-6, atol=1e-5)


def compare_noise(device):
    """The noise of the kernel is that of the plain sampler, and draws from the softmax."""
    from test_noise import LOGITS, VOCAB, excess, keys_of

    from qwen3llada.sampling.cuda.logits_kernel import Form, Parts, read_logits
    from qwen3llada.sampling.keyed_gumbel import gumbel_float64, row_keys
    from qwen3llada.sampling.params import DecodeParams

    params = DecodeParams(temperature=1.0)
    units = 60_000 // 8 if device != "cpu" else 4
    keys, (knobs, steps) = row_keys(1, range(units)).to(device), of_units(params, units, device)
    steps.fill_(3)
    for logits in (values.float() for values in LOGITS.values()):
        parts = Parts.empty(units * 8, VOCAB, device)
        places, masked = torch.arange(units * 8, device=device), torch.ones(units, 8, dtype=torch.bool, device=device)
        rows = logits.to(device).expand(units * 8, -1).contiguous()
        common = {"form": Form.of(params), "mask_token": -1, "width": 8}
        read_logits(rows, None, places, masked, keys, steps, knobs, parts, **common)
        best = parts.values[4].cpu().max(-1)
        drawn = parts.tokens[1].cpu().gather(1, best.indices[:, None])[:, 0].long()
        exact = logits.double() + gumbel_float64(keys_of(1, units * 8), VOCAB)
        assert (drawn != exact.argmax(-1)).float().mean() < 1e-3
        torch.testing.assert_close(best.values.double(), exact.amax(-1), rtol=1e-6, atol=1e-5)
        if device != "cpu":
            assert excess(drawn, torch.softmax(logits.double(), -1)) < 4


def compare_units_of_other_numbers(device):
    """Units of other steps and parameters, in one call as each by itself."""
    from qwen3llada.sampling.cuda.logits_kernel import knob_values
    from qwen3llada.sampling.params import DecodeParams

    given, counts, steps = inputs(), torch.tensor([2, 1]), torch.tensor([3, 1], device=device)
    common = {"remasking": "random_topk"}
    first = {"temperature": 3.0, "cfg_scale": 1.5, "position_temperature": 0.4, "remasking_temperature": 2.0}
    second = {"temperature": 2.0, "cfg_scale": 0.5, "position_temperature": 0.9, "remasking_temperature": 0.3}
    for unmask in ({}, {"unmask": "threshold"}, {"unmask": "factor"}):
        bounds = ({"confidence_threshold": 0.2, "factor": 3.0}, {"confidence_threshold": 0.9, "factor": 0.4})
        both = [
            DecodeParams(**common, **unmask, **own, **bound) for own, bound in zip((first, second), bounds, strict=True)
        ]
        knobs = torch.stack([knob_values(params) for params in both], 1).to(device)
        together = fused(*given, counts, both[0], device, (knobs, steps))
        for unit, params in enumerate(both):
            places, at = slice(unit * WIDTH, (unit + 1) * WIDTH), slice(unit, unit + 1)
            alone = given[0][places], given[1][places], *(x[at] for x in given[2:])
            own = knobs[:, at].contiguous(), steps[at]
            found = fused(*alone, counts[at], params, device, own)
            for values, wholes, where in zip(found, together, (places, at), strict=True):
                for value, whole in zip(values, wholes, strict=True):
                    assert torch.equal(value, whole[where])


def compare_chosen(device):
    """The masked positions, and their rows in units of 7 queries, of which the block begins at column 2."""
    from qwen3llada.sampling.cuda.commit_kernels import choose_masked

    masked = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) < 0.4
    there = masked.flatten().nonzero()[:, 0]
    column = torch.tensor(1, dtype=torch.int32, device=device)
    for guided in (False, True):
        places, rows = choose_masked(masked.to(device), column, 1100, queries=7, offset=1, guided=guided)
        expected = torch.cat([there, torch.zeros(1100 - len(there), dtype=torch.int64)])
        assert torch.equal(places.cpu(), expected)
        first = expected // 3 * 7 + 2 + expected % 3
        assert torch.equal(rows.cpu(), torch.cat([first, first + 3500]) if guided else first)


CHECKS = [compare_all, compare_wide_blocks_and_vocabularies, compare_several_tiles]
CHECKS += [compare_extreme_noise, compare_noise, compare_units_of_other_numbers, compare_chosen]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("check", CHECKS)
def test_kernels_compute_the_plain_head_on_a_gpu(check):
    check("cuda")
