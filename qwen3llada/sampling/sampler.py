"""Generation by iterative unmasking (LLaDA, arXiv 2502.09992): a canvas of masks, decoded block by block.

    answers = generate(model, [prompt_a, prompt_b], SampleParams(steps=64, gen_length=64)).tokens
    for step in stream(model, prompts, params): ...          # the same, one forward pass at a time
    infill(model, [text_with_masks], params)                 # masks anywhere in a text

Shapes: B rows, L columns of the canvas, U units (a unit is one block of one row), W columns of a block.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch

from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.decoding import Generation, Step, decode
from qwen3llada.sampling.params import DecodeParams, SampleParams
from qwen3llada.sampling.request import (
    Prompts,
    Request,
    check_keys,
    end_tokens,
    infill_rows,
    make_request,
    prompt_rows,
)
from qwen3llada.sampling.session import Session

__all__ = ["DecodeParams", "Generation", "SampleParams", "Session", "Step", "generate", "infill", "stream"]


def generate(
    model: Any,
    prompts: Prompts,
    params: DecodeParams,
    *,
    seed: int = 0,
    generator: torch.Generator | None = None,
    row_keys: Sequence[int] | None = None,
    eos_token_ids: Sequence[int] | None = None,
    session: Session | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Generation:
    """Answer prompts. The arguments are those of `stream`; `on_step` is called after each forward pass."""
    rows = prompt_rows(model, prompts, params)
    ends = end_tokens(model) if eos_token_ids is None else eos_token_ids
    request = _request(model, rows, params, seed, generator, row_keys, ends, session)
    return exhaust(decode(model, request, watched=on_step is not None), on_step)


def stream(
    model: Any,
    prompts: Prompts,
    params: DecodeParams,
    *,
    seed: int = 0,
    generator: torch.Generator | None = None,
    row_keys: Sequence[int] | None = None,
    eos_token_ids: Sequence[int] | None = None,
    session: Session | None = None,
) -> Generator[Step, None, Generation]:
    """Answer prompts, yielding after each forward pass; the generator's return value is the `Generation`.

    Args:
        model: a `Qwen3LLadaForMaskedLM`. Its config gives the mask token, the default policy and block length.
        prompts: token ids of each row, of any lengths, or a tensor [B, P].
        seed: of all noise. Equal seeds give equal tokens.
        generator: if given, the seed is drawn from it, so that two calls differ.
        row_keys: a number per row, by default 0, 1, 2 …. Noise depends on (seed, row number): a row with the same
            number gets the same tokens in any batch.
        eos_token_ids: tokens that end an answer, by default those of the model's config. Empty: nothing ends it early.
        session: of the conversation that the only prompt continues, see `Session`. Changes no token.

    Raises:
        InputError: at once, not at the first step, if the request is wrong.
    """
    rows = prompt_rows(model, prompts, params)
    ends = end_tokens(model) if eos_token_ids is None else eos_token_ids
    return decode(model, _request(model, rows, params, seed, generator, row_keys, ends, session))


def infill(
    model: Any,
    texts: Prompts,
    params: DecodeParams,
    *,
    seed: int = 0,
    generator: torch.Generator | None = None,
    row_keys: Sequence[int] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Generation:
    """Fill in the mask tokens of texts, wherever they are. All other tokens stay.

    Tokens before the first mask are the prompt; the rest is decoded in blocks. The blocks with masks share `steps`;
    `gen_length` is ignored. An EOS ends nothing here. `Generation.tokens` holds each text from its first mask on.
    Raises InputError if the request is wrong.
    """
    rows = infill_rows(model, texts)
    request = _request(model, rows, params, seed, generator, row_keys, ())
    return exhaust(decode(model, request, watched=on_step is not None), on_step)


def exhaust(steps: Generator[Step, None, Generation], on_step: Callable[[Step], None] | None = None) -> Generation:
    """Run a generator of steps to its end and return its return value."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        if on_step is not None:
            on_step(step)


def _request(
    model: Any,
    rows: tuple[list[list[int]], list[list[int]]],
    params: DecodeParams,
    seed: int,
    generator: torch.Generator | None,
    row_keys: Sequence[int] | None,
    ends: Sequence[int],
    session: Session | None = None,
) -> Request:
    if generator is not None:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    keys = noise.row_keys(seed, check_keys(row_keys, len(rows[0])))
    return make_request(model, rows, params, keys, ends, session)
