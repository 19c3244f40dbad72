"""Attention policies: which query position sees which key position.

A sequence is a prompt of P tokens (P = 0 in pretraining) and an answer, cut into blocks of `block_length` tokens. A
policy compares the block numbers of a query and a key, broadcast over all pairs of positions. Its other fields decide
how blocks are counted, what a corrupted block sees in training, and which keys and values sampling may keep. To add a
policy, write its comparison and enter it in `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen3llada.errors import InputError

if TYPE_CHECKING:  # torch takes seconds to import; the parameters need only the names of the policies
    import torch
    from torch import Tensor

PROMPT = -1  # block number of prompt positions, for policies that count blocks from the prompt's end
ALTERNATE = "alternate:"  # followed by two policies, which the layers use in turn
STORED_ATTENTION = ("attention_policy", "block_length", "window_blocks", "layer_types")  # keys of a model's config
LAYER_KINDS = ("full_attention", "sliding_attention")  # names that Transformers allows; here they only select masks


def full(query: Tensor, key: Tensor, window: int) -> Tensor:
    """Every position sees every position (LLaDA, arXiv 2502.09992)."""
    return (query == key) | True


def block(query: Tensor, key: Tensor, window: int) -> Tensor:
    """Every position sees the prompt; an answer block sees only the prompt and itself."""
    return (key == PROMPT) | (query == key)


def block_causal(query: Tensor, key: Tensor, window: int) -> Tensor:
    """A block sees itself and all earlier blocks (BD3-LM, arXiv 2503.09573; SDAR, arXiv 2510.06303)."""
    return key <= query


def block_window(query: Tensor, key: Tensor, window: int) -> Tensor:
    """As `block_causal`, but a block sees only the last `window` blocks before itself."""
    return (key <= query) & (key >= query - window)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Who sees whom.

    sees: (query's block number, key's block number, window_blocks), broadcastable -> True if the query sees the key.
    causal: no block sees a later one. This has three consequences. Blocks are counted from position 0, including the
        prompt. In training a corrupted block sees clean copies of earlier blocks, as it does in sampling. Sampling
        keeps the keys and values of finished blocks, because later tokens do not change them.
    keeps_prompt: the prompt's keys and values depend only on the prompt, so sampling keeps them.
    windowed: a block sees no more than `window_blocks` blocks before its own. The sampler's graphs and the FLOP count
        of training read it.
    """

    sees: Callable[[Tensor, Tensor, int], Tensor]
    causal: bool = False
    keeps_prompt: bool = False
    windowed: bool = False


POLICIES: dict[str, Policy] = {
    "full": Policy(sees=full),
    "block": Policy(sees=block, keeps_prompt=True),
    "block_causal": Policy(sees=block_causal, causal=True, keeps_prompt=True),
    "window": Policy(sees=block_window, causal=True, keeps_prompt=True, windowed=True),
}


def plan(policy: str | Sequence[str], layers: int | None = None) -> tuple[str, ...]:
    """The policy of each of `layers` layers, from one name for all, `alternate:A,B`, or a list with one name per layer.

    Without `layers` it checks only what does not depend on their number.

    Raises: InputError for an unknown name, a list of another length, and for mixing causal with other policies: a
    non-causal layer lets a clean block see later tokens, and a causal layer would leak them to an earlier corrupted
    one.
    """
    if isinstance(policy, str) and policy.startswith(ALTERNATE):
        names = [name.strip() for name in policy.removeprefix(ALTERNATE).split(",")]
        if len(names) != 2:
            raise InputError(f"{policy=} must name two policies, as in alternate:full,block")
        names = [names[i % 2] for i in range(layers or 2)]
    elif isinstance(policy, str):
        names = [policy] * (layers or 1)
    else:
        names = list(policy)
        if layers is not None and len(names) != layers:
            raise InputError(f"policy={names} must hold one policy for each of the model's {layers} layers")
    if unknown := [name for name in names if name not in POLICIES]:
        raise InputError(f"policy={unknown[0]!r} must be one of {', '.join(POLICIES)}")
    if len({POLICIES[name].causal for name in names}) != 1:
        causal = ", ".join(name for name, entry in POLICIES.items() if entry.causal)
        others = ", ".join(name for name, entry in POLICIES.items() if not entry.causal)
        raise InputError(
            f"{policy=} must not mix policies out of {{{others}}} with policies out of {{{causal}}}: a clean block"
            " would carry later tokens into an earlier corrupted one"
        )
    return tuple(names)


def is_causal(policy: str | Sequence[str]) -> bool:
    """Whether the blocks of a policy or plan see no later block (see `Policy`)."""
    return POLICIES[plan(policy)[0]].causal


def keeps_prompt(policy: str | Sequence[str]) -> bool:
    """Whether in every layer the prompt's keys and values depend only on the prompt (see `Policy`)."""
    return all(POLICIES[name].keeps_prompt for name in plan(policy))


def layer_kinds(policy: str | Sequence[str], layers: int) -> list[str]:
    """Each layer's type in Transformers' terms (`config.layer_types`), which assigns masks to layers.

    Raises: InputError as `plan`, and for more different policies than there are types.
    """
    names = plan(policy, layers)
    distinct = [name for name in POLICIES if name in names]
    if len(distinct) > len(LAYER_KINDS):
        raise InputError(f"{policy=} must hold at most {len(LAYER_KINDS)} different policies, given {len(distinct)}")
    return [LAYER_KINDS[distinct.index(name)] for name in names]


def mask_of_each_kind(policy: str | Sequence[str], config: Any, mask_of: Callable[[str], Any]) -> Any:
    """`mask_of(policy)` if all layers have the same policy, else a dict of masks by layer type.

    config: the model's, with the layer types of `layer_kinds`.
    Raises: ValueError if it has other types.
    """
    names = plan(policy, config.num_hidden_layers)
    if len(set(names)) == 1:
        return mask_of(names[0])
    kinds = layer_kinds(policy, config.num_hidden_layers)
    if kinds != list(config.layer_types):
        raise ValueError(f"config.layer_types={config.layer_types} must be {kinds} for {policy=}")
    return {kind: mask_of(name) for kind, name in dict(zip(kinds, names, strict=True)).items()}


def block_numbers(policy: str, positions: Tensor, prompt_lengths: Tensor, block_length: int) -> Tensor:
    """Block number of each position (broadcast). Causal policies count from 0, others from the prompt's end."""
    import torch

    if POLICIES[policy].causal:
        return (positions // block_length).expand(torch.broadcast_shapes(positions.shape, prompt_lengths.shape))
    return torch.where(positions < prompt_lengths, PROMPT, (positions - prompt_lengths) // block_length)


def document_numbers(tokens: Tensor, end: int) -> Tensor:
    """Number of each token's document within its row, from 0: [B,L] like `tokens`. `end` closes a document."""
    ends = tokens == end
    return ends.cumsum(1) - ends.long()


def document_positions(documents: Tensor) -> Tensor:
    """Positions [B,L] counted from 0 in each document, from document numbers [B,L]."""
    import torch

    columns = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return columns - columns.where(starts, 0).cummax(1).values


def attention_bias(
    policy: str,
    prompt_lengths: Tensor,
    length: int,
    block_length: int,
    valid: Tensor | None = None,
    dtype: torch.dtype | None = None,
    *,
    documents: Tensor | None = None,
    window_blocks: int = 4,
) -> Tensor | None:
    """The mask of a policy: 0 where a query sees a key, else -inf; for `dtype=torch.bool` True and False. None is
    float32.

    prompt_lengths [B]: tokens before the answer, including left padding. valid [B,L]: False at padding, which is never
    seen. documents [B,L]: document numbers. If given, a query sees only keys of its own document, and blocks are
    counted within each document. A padding query may see no key at all; the model still gives finite numbers for it.
    Returns [B,1,L,L] on the device of `prompt_lengths`; None for policy `full` without `valid` and `documents`.
    Raises InputError for an unknown policy or a block length below 1, ValueError for shapes that do not fit.
    """
    import torch

    check_arguments(policy, prompt_lengths, length, block_length, valid, documents)
    if policy == "full" and valid is None and documents is None:
        return None
    blocks = blocks_of_columns(policy, prompt_lengths, length, block_length, documents)
    visible = POLICIES[policy].sees(blocks[:, None, :, None], blocks[:, None, None, :], window_blocks)
    if valid is not None:
        visible = visible & valid[:, None, None, :]
    if documents is not None:
        visible = visible & (documents[:, None, :, None] == documents[:, None, None, :])
    if dtype == torch.bool:
        return visible
    return torch.zeros((), dtype=dtype or torch.float32, device=visible.device).masked_fill(~visible, -torch.inf)


def blocks_of_columns(
    policy: str, prompt_lengths: Tensor, length: int, block_length: int, documents: Tensor | None
) -> Tensor:
    """Block numbers [B,L] of a batch's columns, starting at position 0."""
    import torch

    columns, prompts = torch.arange(length, device=prompt_lengths.device)[None], prompt_lengths[:, None]
    if documents is None:
        return block_numbers(policy, columns, prompts, block_length)
    positions = document_positions(documents)
    if POLICIES[policy].causal:
        return block_numbers(policy, positions, prompts, block_length)
    first = torch.maximum(prompts, columns - positions)  # first column of each document after the prompt
    return torch.where(columns < prompts, PROMPT, (columns - first) // block_length)


def check_arguments(
    policy: str,
    prompt_lengths: Tensor,
    length: int,
    block_length: int,
    valid: Tensor | None,
    documents: Tensor | None,
) -> None:
    """Raises InputError or ValueError as described in `attention_bias`."""
    import torch

    if policy not in POLICIES:
        raise InputError(f"{policy=} must be one of {', '.join(POLICIES)}")
    if block_length < 1:
        raise InputError(f"{block_length=} must be at least 1")
    if prompt_lengths.dim() != 1:
        raise ValueError(f"prompt_lengths has shape {tuple(prompt_lengths.shape)} but must be [B]")
    shape = (len(prompt_lengths), length)
    if valid is not None and (valid.dtype != torch.bool or valid.shape != shape):
        raise ValueError(f"valid has shape {tuple(valid.shape)} and {valid.dtype} but must be {shape} and boolean")
    if documents is not None and documents.shape != shape:
        raise ValueError(f"documents has shape {tuple(documents.shape)} but must be {shape}")
