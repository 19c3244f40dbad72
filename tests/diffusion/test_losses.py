"""Losses against loops over numbers in float64; guidelines against its expectation over all masks of a toy model."""

import math
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate

from qwen3llada.diffusion.corruption import Noised, NoiseParams, add_noise, maskable_positions
from qwen3llada.diffusion.losses import LOSSES

MASK, VOCABULARY, SMOOTHING = 6, 7, 0.15


def position_loss(scores: list[float], target: int, smoothing: float) -> float:
    normaliser = math.log(sum(math.exp(x) for x in scores))
    mean = sum(normaliser - x for x in scores) / len(scores)
    return (1 - smoothing) * (normaliser - scores[target]) + smoothing * mean


def by_hand(name, logits, tokens, noised, valid, prompts, cap, noise_type="mask"):
    """The table of losses, computed number by number."""
    smoothing = SMOOTHING if name == "soft_ce" else 0.0
    batch, length = tokens.shape
    total, real_tokens, samples = 0.0, 0, 0
    for s in range(batch):
        real = [i for i in range(length) if valid is None or valid[s][i]]
        region = [i for i in real if prompts is None or i >= prompts[s]]
        real_tokens, samples = real_tokens + len(real), samples + bool(real)
        p = noised.p_mask[s].expand(length).tolist()  # of the sequence, or of each position
        weight = [1 / x if cap is None else min(1 / x, cap) for x in p]
        corrupted = [i for i in region if noised.masked[s][i]]
        if name == "dllm" and noise_type == "mask":
            corrupted = [i for i in region if noised.tokens[s][i].item() == MASK]
        losses = {i: position_loss(logits[s][i].tolist(), tokens[s][i].item(), smoothing) for i in corrupted}
        weighted = sum(weight[i] * x for i, x in losses.items())
        if name == "dllm":
            total += sum(losses.values()) / max(1, len(corrupted))
        elif prompts is None:
            total += weighted
        elif region:
            total += weighted / len(region)
    return total / (real_tokens if prompts is None and name != "dllm" else samples)


def case(kind: str) -> dict[str, Any]:
    """Arguments of a loss: five rows of nine tokens, with all irregularities that `kind` allows."""
    rng = np.random.default_rng(4)
    tokens = torch.from_numpy(rng.integers(0, MASK, (5, 9)))
    logits = torch.from_numpy(rng.normal(0, 2, (5, 9, VOCABULARY)))
    sft = kind.startswith("sft")
    prompts = torch.tensor([0, 3, 8, 1, 2]) if sft else None
    valid = torch.arange(9) < torch.tensor([9, 6, 9, 2, 5])[:, None] if kind.endswith("padded") else None
    return {"logits": logits, "tokens": tokens, "valid": valid, "prompt_lengths": prompts}


def noise_for(arguments, params=NoiseParams(), levels=None):
    return add_noise(
        arguments["tokens"],
        params,
        mask_token_id=MASK,
        indices=torch.arange(len(arguments["tokens"])),
        seed=0,
        epoch=0,
        levels=levels,
        valid=arguments["valid"],
        prompt_lengths=arguments["prompt_lengths"],
        real_tokens=range(MASK),
    )


def masks(which, arguments, noised):
    """Masks all maskable positions, exactly one, or as drawn."""
    if which == "drawn":
        return noised
    everything = noise_for(arguments, NoiseParams(min_masking_rate=1.0)).masked
    masked = everything if which == "all" else everything & (everything.cumsum(1) == 1)
    return Noised(arguments["tokens"].masked_fill(masked, MASK), masked, noised.p_mask)


KINDS = ["pretraining", "pretraining padded", "sft", "sft padded"]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["drawn", "all", "one"])
@pytest.mark.parametrize("cap", [None, 1.0, 2.5])
def test_equals_the_table(name, kind, which, cap):
    arguments = case(kind)
    noised = masks(which, arguments, noise_for(arguments))
    loss = LOSSES[name](noised=noised, mask_token_id=MASK, smoothing=SMOOTHING, reweight_cap=cap, **arguments)
    expected = by_hand(
        name,
        arguments["logits"],
        arguments["tokens"],
        noised,
        arguments["valid"],
        arguments["prompt_lengths"],
        cap,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cap", [None, 2.5])
def test_a_p_of_each_position_equals_the_table(name, kind, cap):
    """As in block diffusion: one p per position, and masks drawn with it."""
    arguments = case(kind)
    levels = torch.from_numpy(np.random.default_rng(6).uniform(0.1, 1, (5, 9)))
    noised = noise_for(arguments, levels=levels)
    assert noised.p_mask.shape == (5, 9)
    loss = LOSSES[name](noised=noised, mask_token_id=MASK, smoothing=SMOOTHING, reweight_cap=cap, **arguments)
    text = (arguments["logits"], arguments["tokens"], noised, arguments["valid"], arguments["prompt_lengths"])
    assert loss.item() == pytest.approx(by_hand(name, *text, cap), rel=1e-6)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.weighs_by_inverse_p])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cap", [None, 2.5])
def test_one_p_for_all_positions_has_the_bits_of_a_p_for_each(name, kind, cap):
    """The loss of p [B] equals its formula: 1/p, capped, over the answer's length, then over positions."""
    arguments = case(kind)
    arguments.pop("logits")
    tokens, noised = arguments.pop("tokens"), noise_for(arguments | {"tokens": case(kind)["tokens"]})
    weights = LOSSES[name].token_weights(tokens, noised, mask_token_id=MASK, reweight_cap=cap, **arguments)
    each = noised._replace(p_mask=noised.p_mask[:, None].expand(5, 9).contiguous())
    assert torch.equal(
        LOSSES[name].token_weights(tokens, each, mask_token_id=MASK, reweight_cap=cap, **arguments), weights
    )
    target = maskable_positions(tokens, arguments["valid"], arguments["prompt_lengths"])
    weight = noised.p_mask.reciprocal() if cap is None else noised.p_mask.reciprocal().clamp(max=cap)
    if kind.startswith("sft"):
        weight = weight / target.sum(dim=1).clamp(min=1)
    assert torch.equal(weights, weight[:, None] * (noised.masked & target))


@pytest.mark.parametrize("shape", [(9,), (5, 1), (5, 8)])
def test_a_p_of_another_shape_is_refused(shape):
    arguments = case("pretraining")
    noised = noise_for(arguments)._replace(p_mask=torch.ones(shape))
    with pytest.raises(ValueError, match=r"p_mask of shape \(.*\) must have shape \(5,\) or \(5, 9\)"):
        LOSSES["guidelines"](noised=noised, mask_token_id=MASK, **arguments)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_random_replace_goes_by_the_boolean_mask(name, kind):
    arguments = case(kind)
    noised = noise_for(arguments, NoiseParams(noise_type="random_replace", mask_contiguous_region_prob=0.5))
    loss = LOSSES[name](noised=noised, mask_token_id=MASK, smoothing=SMOOTHING, **arguments)
    logits, tokens = arguments["logits"], arguments["tokens"]
    expected = by_hand(
        name, logits, tokens, noised, arguments["valid"], arguments["prompt_lengths"], None, noise_type="random_replace"
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_dllm_counts_mask_tokens_of_the_text():
    arguments = case("sft padded")
    arguments["tokens"] = arguments["tokens"].clone()
    arguments["tokens"][1, 1:7] = MASK  # in the prompt, in the answer and in the padding
    drawn = noise_for(arguments)
    noised = masks("one", arguments, drawn)
    logits, tokens = arguments["logits"], arguments["tokens"]
    expected = by_hand("dllm", logits, tokens, noised, arguments["valid"], arguments["prompt_lengths"], None)
    loss = LOSSES["dllm"](noised=noised, mask_token_id=MASK, **arguments)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    weights = LOSSES["dllm"].token_weights(
        arguments["tokens"],
        noised,
        mask_token_id=MASK,
        valid=arguments["valid"],
        prompt_lengths=arguments["prompt_lengths"],
    )
    assert weights[1].tolist() == pytest.approx([0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient(name, kind):
    arguments = case(kind)
    noised = noise_for(arguments)
    logits = arguments.pop("logits").requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, noised=noised, mask_token_id=MASK, smoothing=SMOOTHING, **arguments), (logits,)
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_parts_add_up_to_the_step(name, kind, size):
    """Weights and denominators of micro-batches combine to the loss and gradient of the whole step."""
    arguments = case(kind)
    noised, loss = noise_for(arguments), LOSSES[name]
    logits = arguments.pop("logits").requires_grad_()
    whole = loss(logits, noised=noised, mask_token_id=MASK, smoothing=0.0, **arguments)
    (gradient,) = torch.autograd.grad(whole, logits)

    total, denominator = torch.zeros((), dtype=torch.float64), 0.0
    for start in range(0, 5, size):
        rows = slice(start, start + size)
        tokens = arguments["tokens"][rows]
        valid, prompts = (
            None if arguments[key] is None else arguments[key][rows] for key in ("valid", "prompt_lengths")
        )
        part = Noised(*(x[rows] for x in noised))
        weights = loss.token_weights(tokens, part, mask_token_id=MASK, valid=valid, prompt_lengths=prompts)
        assert weights.dtype == torch.float32
        cross_entropy = torch.nn.functional.cross_entropy(
            logits[rows].flatten(0, 1), tokens.flatten(), reduction="none"
        )
        total = total + (weights.flatten() * cross_entropy).sum()
        denominator += loss.denominator(tokens, valid=valid, prompt_lengths=prompts)
    (summed,) = torch.autograd.grad(total / denominator, logits)
    torch.testing.assert_close(total / denominator, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(summed, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["pretraining padded", "sft padded"])
def test_a_row_of_padding_is_no_sample(name, kind):
    arguments = case(kind)
    noised = noise_for(arguments)
    loss = LOSSES[name](noised=noised, mask_token_id=MASK, **arguments)
    more: dict[str, Any] = {
        key: None if x is None else torch.cat([x, torch.zeros_like(x[:1])]) for key, x in arguments.items()
    }
    more["tokens"][-1] = MASK
    wider = Noised(*(torch.cat([x, torch.ones_like(x[:1])]) for x in noised))
    assert torch.equal(LOSSES[name](noised=wider, mask_token_id=MASK, **more), loss)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_but_padding_gives_zero(name):
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    logits = torch.randn(1, 4, VOCABULARY, requires_grad=True)
    noised = Noised(torch.zeros(1, 4, dtype=torch.long), nothing, torch.ones(1))
    loss = LOSSES[name](logits, noised.tokens, noised, mask_token_id=MASK, valid=nothing)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_logits_outside_the_loss_do_not_matter(name):
    arguments = case("sft padded")
    noised = noise_for(arguments)
    base = LOSSES[name](noised=noised, mask_token_id=MASK, **arguments)
    logits = arguments.pop("logits").clone()
    logits[~noised.masked] = float("inf")
    logits.requires_grad_()
    loss = LOSSES[name](logits, noised=noised, mask_token_id=MASK, **arguments)
    loss.backward()
    assert torch.equal(loss, base)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cross_entropy_is_in_float32(name, dtype):
    arguments = case("pretraining")
    arguments["logits"] = arguments["logits"].to(dtype)
    noised = noise_for(arguments)
    loss = LOSSES[name](noised=noised, mask_token_id=MASK, **arguments)
    arguments["logits"] = arguments["logits"].float()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, LOSSES[name](noised=noised, mask_token_id=MASK, **arguments))


@cache
def many_noised(text, rows, seed, params, prompt=None):
    """`text` with noise in so many rows; the same for every loss."""
    prompts = None if prompt is None else torch.full((rows,), prompt)
    common = {"mask_token_id": MASK, "indices": torch.arange(rows), "seed": seed, "epoch": 0}
    return add_noise(torch.tensor(text).expand(rows, -1), params, prompt_lengths=prompts, **common)


@pytest.mark.parametrize("length", [1, 4, 16])
@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.weighs_by_inverse_p])
def test_a_positions_mean_weight_is_one(name, length):
    """Why 1/p: each position counts once on average, whatever p is, in short sequences too.

    Given p, a weight is 1/p with probability p, so its variance is 1/p - 1.
    """
    rows = 20_000
    tokens = torch.zeros(rows, length, dtype=torch.long)
    noised = many_noised((0,) * length, rows, 0, NoiseParams())
    weights = LOSSES[name].token_weights(tokens, noised, mask_token_id=MASK)
    error = (1 / noised.p_mask.double() - 1).sum().div(length).sqrt().item() / rows
    assert error < 0.02
    assert weights.double().mean().item() == pytest.approx(1, abs=3 * error)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_without_a_mask_adds_zero(name, kind):
    """A sample without masks counts in the denominator. A batch of such samples has loss 0 and gradient 0."""
    arguments = case(kind)
    noised = noise_for(arguments, NoiseParams(min_masking_rate=0.5))
    masked = noised.masked & (torch.arange(5) != 1)[:, None]
    for kept in (masked, torch.zeros_like(masked)):
        whole = Noised(arguments["tokens"].masked_fill(kept, MASK), kept, noised.p_mask)
        logits = arguments["logits"].clone().requires_grad_()
        loss = LOSSES[name](**arguments | {"logits": logits}, noised=whole, mask_token_id=MASK, smoothing=SMOOTHING)
        loss.backward()
        settings = (arguments["valid"], arguments["prompt_lengths"], None)
        assert loss.item() == pytest.approx(by_hand(name, logits.detach(), arguments["tokens"], whole, *settings))
        assert logits.grad is not None
        assert not logits.grad[1].any()
        assert bool(loss) == bool(logits.grad.any()) == bool(kept.any())


# --- The exact expectation of a model of three tokens, over the noise level and every mask ---

TEXT = torch.tensor([0, 2, 1])
TABLE = torch.from_numpy(np.random.default_rng(5).normal(0, 2, (MASK + 1,) * 3 + (3, VOCABULARY)))


def toy_model(noisy: torch.Tensor) -> torch.Tensor:
    """Logits [B, 3, V] that depend on the whole noisy sequence [B, 3]: a table."""
    return TABLE[noisy[:, 0], noisy[:, 1], noisy[:, 2]]


def exact_expectation(name: str, prompt: int | None, eps: float) -> float:
    """Integral over t of the sum over masks of their probability times the loss, computed without the package.

    An empty mask has the loss 0.
    """
    maskable = range(prompt or 0, 3)
    smoothing = SMOOTHING if name == "soft_ce" else 0.0
    losses = {}
    for mask in product([False, True], repeat=len(maskable)):
        chosen = [i for i, is_masked in zip(maskable, mask, strict=True) if is_masked]
        noisy = TEXT.clone()
        noisy[chosen] = MASK
        logits = toy_model(noisy[None])[0]
        losses[mask] = sum(position_loss(logits[i].tolist(), TEXT[i].item(), smoothing) for i in chosen)

    def integrand(t: float) -> float:
        p, size, total = (1 - eps) * t + eps, len(maskable), 0.0
        for mask, loss in losses.items():
            count = sum(mask)
            total += p**count * (1 - p) ** (size - count) * loss / p / size
        return total

    return integrate.quad(integrand, 0, 1, epsabs=1e-12)[0]


@pytest.mark.parametrize("name", ["guidelines", "soft_ce"])
@pytest.mark.parametrize("prompt", [None, 1])
def test_unbiased(name, prompt):
    draws, eps = 40_000, 0.05
    tokens = TEXT.expand(draws, 3)
    prompts = None if prompt is None else torch.full((draws,), prompt)
    noised = many_noised(tuple(TEXT.tolist()), draws, 2, NoiseParams(eps=eps), prompt)
    logits = toy_model(noised.tokens)
    loss = LOSSES[name](logits, tokens, noised, mask_token_id=MASK, prompt_lengths=prompts, smoothing=SMOOTHING)
    weights = LOSSES[name].token_weights(tokens, noised, mask_token_id=MASK, prompt_lengths=prompts)
    cross_entropy = -logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    error = (weights * cross_entropy).sum(1).std().item() / (3 if prompt is None else 1) / math.sqrt(draws)
    exact = exact_expectation(name, prompt, eps)
    assert error < 0.01 * exact
    assert loss.item() == pytest.approx(exact, abs=3 * error)
