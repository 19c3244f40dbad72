"""One read of the logits gives what every way of decoding needs of them: a Triton kernel.

The vocabulary of each row is split over several programs, so that few rows already occupy all SMs; the parts are merged
by `proposal_kernel`. Safe to capture in a CUDA graph. Shapes: R rows of logits, V vocabulary, N positions, P parts.
"""

from enum import IntEnum
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwen3llada.sampling.cuda.noise_kernels import TOKEN, gumbel32, step_key
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.unmasking import UNMASKING

NOTHING = tl.constexpr(-1.0e30)  # less than any logit; unlike -inf, NOTHING - NOTHING is 0 and not NaN
VOCABULARY_TILE = 1024
MOST_PARTS = 16


class Form(NamedTuple):
    """What of a step's parameters decides which code runs. Their values are `knobs`."""

    draws: bool  # tokens are drawn at a temperature, else the likeliest is taken
    guided: bool
    remasking: str
    unmask: str
    draws_positions: bool

    @classmethod
    def of(cls, params: DecodeParams) -> "Form":
        return cls(
            draws=params.temperature > 0,
            guided=params.cfg_scale > 0,
            remasking=params.remasking,
            unmask=params.unmask,
            draws_positions=params.position_temperature > 0,
        )

    @property
    def second(self) -> bool:
        """Whether the second largest logit is needed."""
        return self.remasking == "margin"

    @property
    def entropy(self) -> bool:
        return self.remasking == "entropy" or UNMASKING[self.unmask].entropy


class Knob(IntEnum):
    """Rows of the tensor `knobs` [5, U] float64: the parameters of each unit."""

    TEMPERATURE = 0
    GUIDANCE = 1
    REMASKING_TEMPERATURE = 2
    POSITION_TEMPERATURE = 3
    BOUND = 4  # the knob of the way of unmasking


def knob_values(params: DecodeParams) -> Tensor:
    """The values of a step's parameters, [5] float64 on the CPU, see `Knob`."""
    knob = UNMASKING[params.unmask].knob
    values = params.temperature, params.cfg_scale, params.remasking_temperature, params.position_temperature
    return torch.tensor([*values, getattr(params, knob) if knob else 0.0], dtype=torch.float64)


class Parts(NamedTuple):
    """What each part of a row says, see `_read`."""

    values: (
        Tensor  # [6, N, P] float32: largest logit, tail, second, weighted, perturbed value, logit of the drawn token
    )
    tokens: Tensor  # [2, N, P] int32: likeliest token, drawn token

    @classmethod
    def empty(cls, positions: int, vocab: int, device: torch.device) -> "Parts":
        parts = min(MOST_PARTS, triton.next_power_of_2(triton.cdiv(vocab, VOCABULARY_TILE)))
        return cls(
            torch.zeros(6, positions, parts, device=device),
            torch.zeros(2, positions, parts, dtype=torch.int32, device=device),
        )


@triton.jit
def _logits(logits_ptr, without_ptr, at, seen, guidance, GUIDED: tl.constexpr):
    """Guided logits l_u + (s + 1)(l - l_u) in float32 (arXiv 2207.12598), or plain ones."""
    x = tl.load(logits_ptr + at, mask=seen, other=NOTHING).to(tl.float32)
    if GUIDED:
        without = tl.load(without_ptr + at, mask=seen, other=NOTHING).to(tl.float32)
        x = without + guidance * (x - without)
    return x


@triton.jit(do_not_specialize=["mask_token", "width", "positions"])
def _read(
    logits_ptr, without_ptr, places_ptr, masked_ptr, keys_ptr, steps_ptr, knobs_ptr, values_ptr, tokens_ptr,
    vocab, part, mask_token, width, positions,
    DRAWS: tl.constexpr, GUIDED: tl.constexpr, SECOND: tl.constexpr, ENTROPY: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For one part of a row, with x the logits, m the largest and e = exp(x - m).

    Written are m and its token; over the other tokens the sum of e (tail), the largest x (second) and the sum of
    e·(x - m) (weighted); and the largest x + temperature · Gumbel noise, its token, and that token's x. A position that
    is not masked is left out.
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.load(places_ptr + row)
    if tl.load(masked_ptr + place) == 0:
        return
    lane = tl.arange(0, BLOCK)
    first = row * vocab
    end = tl.minimum((split + 1) * part, vocab)
    unit, units = place // width, positions // width
    guidance = (tl.load(knobs_ptr + units + unit) + 1.0).to(tl.float32)
    # Each lane keeps its own results; they are merged at the end.
    top = tl.full((BLOCK,), NOTHING, tl.float32)
    index = tl.zeros((BLOCK,), tl.int32)
    tail = tl.zeros((BLOCK,), tl.float32)
    second = tl.full((BLOCK,), NOTHING, tl.float32)
    weighted = tl.zeros((BLOCK,), tl.float32)
    drawn = tl.full((BLOCK,), float("-inf"), tl.float32)
    drawn_index = tl.zeros((BLOCK,), tl.int32)
    if DRAWS:
        key = step_key(tl.load(keys_ptr + unit), tl.load(steps_ptr + unit), TOKEN, place % width)
        temperature = tl.load(knobs_ptr + unit).to(tl.float32)
    for start in range(split * part, end, BLOCK):
        v = start + lane
        allowed = (v < end) & (v != mask_token)
        x = tl.where(allowed, _logits(logits_ptr, without_ptr, first + v, v < end, guidance, GUIDED), NOTHING)
        wins = x > top
        step = tl.abs(x - top)
        decay = tl.exp(-step)
        if ENTROPY:
            # The old largest logit counts as 1 in the tail from now on, and all of them move by `step`.
            moved = (weighted - step * (tail + tl.where(top > NOTHING, 1.0, 0.0))) * decay
            weighted = tl.where(wins, tl.where(top > NOTHING, moved, 0.0), weighted)
            weighted = tl.where(wins | (x <= NOTHING), weighted, weighted - step * decay)
        if SECOND:
            second = tl.maximum(second, tl.minimum(x, top))
        lost = tl.where(wins, tl.where(top > NOTHING, 1.0, 0.0), tl.where(x > NOTHING, decay, 0.0))
        tail = tl.where(wins, (tail + lost) * decay, tail + lost)
        index = tl.where(wins, v, index)
        top = tl.maximum(top, x)
        if DRAWS:
            noisy = tl.where(allowed, x + temperature * gumbel32(key, v), float("-inf"))
            drawn_index = tl.where(noisy > drawn, v, drawn_index)
            drawn = tl.maximum(drawn, noisy)
    at = place * SPLITS + split
    plane = positions * SPLITS
    best = tl.max(top, 0)
    token = tl.min(tl.where(top == best, index, vocab), 0)  # the lowest token id wins a tie
    real = top > NOTHING
    others = tl.where(real & (index != token), 1.0, 0.0)
    decay = tl.exp(top - best)
    tl.store(values_ptr + at, best)
    tl.store(tokens_ptr + at, token)
    tl.store(values_ptr + plane + at, tl.sum((tail + others) * decay, 0))
    if SECOND:
        tl.store(values_ptr + 2 * plane + at, tl.max(tl.maximum(second, tl.where(index != token, top, NOTHING)), 0))
    if ENTROPY:
        moved = (weighted + (top - best) * (tail + 1.0)) * decay
        tl.store(values_ptr + 3 * plane + at, tl.sum(tl.where(real, moved, 0.0), 0))
    if DRAWS:
        highest = tl.max(drawn, 0)
        chosen = tl.min(tl.where(drawn == highest, drawn_index, vocab - 1), 0)
        tl.store(values_ptr + 4 * plane + at, highest)
        tl.store(tokens_ptr + plane + at, chosen)
        x = _logits(logits_ptr, without_ptr, first + chosen, chosen >= 0, guidance, GUIDED)
        tl.store(values_ptr + 5 * plane + at, x)


def read_logits(
    logits: Tensor,
    without: Tensor | None,
    places: Tensor,
    masked: Tensor,
    keys: Tensor,
    steps: Tensor,
    knobs: Tensor,
    parts: Parts,
    *,
    form: Form,
    mask_token: int,
    width: int,
) -> None:
    """Read logits [R, V] once and write what each part of a row says to places `places` [R] int64 of `parts`.

    Args:
        without: [R, V] logits of the pass with the prompt masked; None without guidance.
        masked: [U, W] bool. Positions that are not masked are left out.
        keys, steps: [U] integers, noise key and number of the step of each unit of `width` positions.
        knobs: [5, U] float64, see `Knob`.
        mask_token: its logit counts as -inf.
    """
    (rows, vocab), (_, positions, splits) = logits.shape, parts.values.shape
    block = min(VOCABULARY_TILE, triton.next_power_of_2(vocab))
    # Whole tiles, so that every load is aligned. The last part may be empty.
    part = triton.cdiv(triton.cdiv(vocab, splits), block) * block
    _read[(rows, splits)](
        logits, logits if without is None else without, places, masked, keys, steps, knobs, *parts,
        vocab, part, mask_token, width, positions,
        DRAWS=form.draws, GUIDED=form.guided, SECOND=form.second, ENTROPY=form.entropy,
        SPLITS=splits, BLOCK=block, num_warps=4,
    )  # fmt: skip
