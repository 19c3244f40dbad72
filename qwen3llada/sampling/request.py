"""From the caller's arguments to a checked canvas. Everything that can be wrong with a request is found here."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from qwen3llada.diffusion.noise_types import NOISE_TYPES
from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import is_causal, plan
from qwen3llada.sampling.canvas import Canvas, lay_out
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.remasking import UnmaskPlan
from qwen3llada.sampling.session import Session

log = logging.getLogger(__name__)
Prompts: TypeAlias = Sequence[Sequence[int]] | Tensor


@dataclass(frozen=True, kw_only=True)
class Request:
    """A canvas and how to decode it. Settings that the parameters leave open come from the checkpoint."""

    params: DecodeParams
    canvas: Canvas  # on the model's device
    layout: Canvas  # the same on the CPU, so that control decisions need not wait for the device
    unmask_plan: UnmaskPlan  # on the CPU
    policy: str | tuple[str, ...]  # a tuple names one policy per layer
    mask_token_id: int
    row_keys: Tensor  # [B] int64 on the CPU, see `keyed_gumbel.row_keys`
    eos_token_ids: tuple[int, ...]  # empty: rows never end early
    session: Session | None = None  # of the only row


def resolve_policy(config: Any, params: DecodeParams) -> str | tuple[str, ...]:
    """The attention policy of a call, or one per layer. Raises InputError if a setting needs another policy."""
    if params.block_attention is None:
        names = plan(config.attention_policy, config.num_hidden_layers)
        policy: str | tuple[str, ...] = names[0] if len(set(names)) == 1 else names
    else:
        policy = "block" if params.block_attention else "full"
    if params.parallel_blocks and policy != "block":
        raise InputError(f"parallel_blocks=true needs attention policy block, not {policy} (set block_attention=true)")
    if params.cache == "dual" and policy != "full":
        raise InputError(f"cache=dual needs attention policy full, not {policy} (set block_attention=false)")
    return policy


def end_tokens(model: Any) -> tuple[int, ...]:
    """Token ids that end an answer, from the model's config: none, one or several."""
    ids = model.config.eos_token_id
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def as_lists(prompts: Prompts, name: str) -> list[list[int]]:
    """Token ids as lists of int. Raises InputError for anything else and for an empty batch."""
    if isinstance(prompts, Tensor):
        if prompts.dim() != 2 or prompts.is_floating_point() or prompts.dtype == torch.bool:
            raise InputError(f"{name} must be integers [B, P], given {prompts.dtype} {list(prompts.shape)}")
        rows = prompts.tolist()
    else:
        rows = [row.tolist() if isinstance(row, Tensor) else list(row) for row in prompts]
    if not rows:
        raise InputError(f"{name} must hold at least one row, given none")
    return rows


def check_rows(rows: Sequence[Sequence[int]], added: int, config: Any, name: str) -> None:
    """Raises InputError for a token id outside the vocabulary, or for a row with more tokens than the model takes."""
    for number, row in enumerate(rows):
        if row and (min(row) < 0 or max(row) >= config.vocab_size):
            outside = next(i for i in row if not 0 <= i < config.vocab_size)
            raise InputError(f"{name}[{number}] holds token {outside}, must be in [0, {config.vocab_size})")
        if len(row) + added > config.max_position_embeddings:
            raise InputError(
                f"{name}[{number}] of {len(row)} tokens + {added} new ones must not exceed the model's"
                f" max_position_embeddings={config.max_position_embeddings}"
            )


def check_keys(row_keys: Sequence[int] | None, rows: int) -> Sequence[int]:
    """Noise keys of the rows, by default 0, 1, 2 …. Raises InputError unless there is one for each row."""
    if row_keys is None:
        return range(rows)
    if len(row_keys) != rows:
        raise InputError(f"row_keys must hold one number for each row, given {len(row_keys)} for {rows}")
    return row_keys


def prompt_rows(model: Any, prompts: Prompts, params: DecodeParams) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts, and answers of mask tokens only. Raises InputError for a prompt that cannot be continued."""
    rows = as_lists(prompts, "prompts")
    check_rows(rows, params.gen_length, model.config, "prompts")
    mask = model.config.mask_token_id
    for number, row in enumerate(rows):
        if mask in row:
            raise InputError(f"prompts[{number}] holds the mask token {mask}: use infill() to fill masks in a text")
    return rows, [[mask] * params.gen_length for _ in rows]


def infill_rows(model: Any, texts: Prompts) -> tuple[list[list[int]], list[list[int]]]:
    """Texts split at their first mask into prompt and answer. Raises InputError for a text without masks."""
    rows = as_lists(texts, "texts")
    check_rows(rows, 0, model.config, "texts")
    mask = model.config.mask_token_id
    for number, row in enumerate(rows):
        if mask not in row:
            raise InputError(f"texts[{number}] must hold the mask token {mask} where something is to be filled in")
    first = [row.index(mask) for row in rows]
    return [r[:i] for r, i in zip(rows, first, strict=True)], [r[i:] for r, i in zip(rows, first, strict=True)]


@cache  # warn once per process
def warn_of_noise(noise_type: str) -> None:
    """Warn if the checkpoint was trained with a noise type that never shows the mask token."""
    if noise_type in NOISE_TYPES and not NOISE_TYPES[noise_type].shows_mask:
        log.warning(
            "the model was trained with noise_type=%s, which never shows the mask token: sampling starts from mask"
            " tokens, so its answers mean nothing unless an earlier training taught them",
            noise_type,
        )


def check_request(model: Any, prompts: Prompts, params: DecodeParams) -> None:
    """Raises InputError if any of these prompts cannot be answered, before the first one is."""
    if params.backend == "graph" and model.device.type != "cuda":
        raise InputError(f"backend=graph cannot be used: the model is on {model.device.type}")
    rows, answers = prompt_rows(model, prompts, params)
    policy = resolve_policy(model.config, params)
    block_length = checked_block_length(model.config, params)
    from_zero = is_causal(policy)
    longest_rest = max(range(len(rows)), key=lambda i: len(rows[i]) % block_length) if from_zero else 0
    some = slice(longest_rest, longest_rest + 1)  # the row whose answer may touch one block more than the others
    canvas = lay_out(rows[some], answers[some], model.config.mask_token_id, block_length, from_zero=from_zero)
    UnmaskPlan.of(canvas.masked_per_block(), params.steps)


def checked_block_length(config: Any, params: DecodeParams) -> int:
    """Tokens per block. Raises InputError if the model has fewer positions, because a canvas holds whole blocks."""
    block_length: int = params.block_length or config.block_length
    if block_length > config.max_position_embeddings:
        limit = config.max_position_embeddings
        raise InputError(f"{block_length=} must not exceed the model's max_position_embeddings={limit}")
    return block_length


def make_request(
    model: Any,
    rows: tuple[list[list[int]], list[list[int]]],
    params: DecodeParams,
    row_keys: Tensor,
    eos_token_ids: Sequence[int],
    session: Session | None = None,
    device: torch.device | str | None = None,
) -> Request:
    """Lay out the rows on `device`, by default the model's. Raises InputError if the parameters do not fit them."""
    if session is not None and len(rows[0]) != 1:
        raise InputError(f"a session is one conversation: prompts must hold one row, given {len(rows[0])}")
    warn_of_noise(model.config.noise_type)
    policy = resolve_policy(model.config, params)
    block_length = checked_block_length(model.config, params)
    canvas = lay_out(*rows, model.config.mask_token_id, block_length, from_zero=is_causal(policy))
    return Request(
        params=params,
        canvas=canvas.to(device or model.device),
        layout=canvas,
        unmask_plan=UnmaskPlan.of(canvas.masked_per_block(), params.steps),
        policy=policy,
        mask_token_id=model.config.mask_token_id,
        row_keys=row_keys,
        eos_token_ids=tuple(eos_token_ids),
        session=session,
    )
