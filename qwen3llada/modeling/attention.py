"""Attention policies: which query position sees which key position.

A sequence is a prompt of P tokens (P = 0 in pretraining) and an answer, cut into blocks of `block_length` tokens:
position i >= P lies in block (i - P) // block_length. Each policy is a comparison of block numbers, broadcast over all
pairs of positions at once; the same function serves tensors and FlexAttention's index-wise masks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from qwen3llada.errors import InputError
from qwen3llada.section import MAX_TOKENS, Section, one_of

if TYPE_CHECKING:  # torch takes seconds to import, and the parameters need only the policies' names
    import torch
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

PROMPT = -1  # the block number of every prompt position


def full(query: Tensor, key: Tensor) -> Tensor:
    """Every position sees every other (LLaDA, arXiv 2502.09992)."""
    return (query == key) | True


def block(query: Tensor, key: Tensor) -> Tensor:
    """The prompt is seen by all; an answer block is seen by itself alone."""
    return (key == PROMPT) | (query == key)


def block_causal(query: Tensor, key: Tensor) -> Tensor:
    """The prompt is seen by all; an answer block by itself and later ones (BD3-LM, arXiv 2503.09573)."""
    return key <= query  # the prompt's number is below every other


# name -> (query's block number, key's block number), broadcastable -> True where the query sees the key
POLICIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"full": full, "block": block, "block_causal": block_causal}
# A block would have to be trained against clean earlier blocks, where training has one corrupted copy of a sequence.
SAMPLED_ONLY = {"block_causal"}


class AttentionParams(Section):
    """Who sees whom in training. Stored with the checkpoint, and the sampler's default."""

    policy: Annotated[str, one_of(POLICIES, but=SAMPLED_ONLY)] = Field(
        "full",
        description="full: every position sees every other; block: the prompt sees itself, an answer block sees the "
        "prompt and itself",
    )
    block_length: int = Field(
        32,
        ge=1,
        le=MAX_TOKENS,
        description="tokens of an answer block, 1 to 1,048,576 and no more than the model takes",
    )


def block_numbers(positions: Tensor, prompt_lengths: Tensor, block_length: int) -> Tensor:
    """The block of each position, `PROMPT` in the prompt. The two tensors broadcast."""
    import torch

    return torch.where(positions < prompt_lengths, PROMPT, (positions - prompt_lengths) // block_length)


def document_numbers(tokens: Tensor, end: int) -> Tensor:
    """Which document of its row each token belongs to, from 0 on: [B,L] like `tokens`. `end` closes a document."""
    ends = tokens == end
    return ends.cumsum(1) - ends.long()


def attention_bias(
    policy: str,
    prompt_lengths: Tensor,
    length: int,
    block_length: int,
    valid: Tensor | None = None,
    dtype: torch.dtype | None = None,
    *,
    documents: Tensor | None = None,
) -> Tensor | None:
    """The mask of a policy: 0 where a query sees a key and -inf where not, or True and False for `dtype=torch.bool`.
    None is float32.

    prompt_lengths [B], tokens before the answer, left padding included; valid [B,L], False at padding, never seen.
    documents [B,L]: numbers; what the policy shows is seen within one document only.
    A padding query may see no key at all; the model gives such rows finite numbers.
    Returns [B,1,L,L] on the device of `prompt_lengths`, or None where the policy is full and neither `valid` nor
    `documents` is given. Raises InputError for an unknown policy or a block length below 1, ValueError for shapes
    that do not fit.
    """
    import torch

    _check(policy, prompt_lengths, length, block_length, valid, documents)
    if policy == "full" and valid is None and documents is None:
        return None
    positions = torch.arange(length, device=prompt_lengths.device)
    blocks = block_numbers(positions, prompt_lengths[:, None], block_length)  # [B,L]
    visible = POLICIES[policy](blocks[:, None, :, None], blocks[:, None, None, :])
    if valid is not None:
        visible = visible & valid[:, None, None, :]
    if documents is not None:
        visible = visible & (documents[:, None, :, None] == documents[:, None, None, :])
    if dtype == torch.bool:
        return visible
    return torch.zeros((), dtype=dtype or torch.float32, device=visible.device).masked_fill(~visible, -torch.inf)


def block_mask(
    policy: str,
    prompt_lengths: Tensor,
    length: int,
    block_length: int,
    valid: Tensor | None = None,
    *,
    documents: Tensor | None = None,
) -> BlockMask | None:
    """The same mask for FlexAttention, whose kernel skips the tiles that hold no visible pair. Arguments as above.

    Returns a `BlockMask` [B,1,L,L], or None where `attention_bias` does.
    """
    import torch

    _check(policy, prompt_lengths, length, block_length, valid, documents)
    if policy == "full" and valid is None and documents is None:
        return None
    sees = POLICIES[policy]
    positions = torch.arange(length, device=prompt_lengths.device)
    blocks = block_numbers(positions, prompt_lengths[:, None], block_length)

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = sees(blocks[b, q], blocks[b, k])
        if documents is not None:
            seen = seen & (documents[b, q] == documents[b, k])
        return seen if valid is None else seen & valid[b, k]

    device = prompt_lengths.device
    build = _create_block_mask(compiled=device.type == "cuda")
    return build(visible, B=len(prompt_lengths), H=None, Q_LEN=length, KV_LEN=length, device=device)


@cache
def _create_block_mask(compiled: bool) -> Callable[..., Any]:
    """Compiled, the L·L pairs are never held at once; FlexAttention is compiled only on a GPU, so this is, too."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask  # takes a second to import

    return torch.compile(create_block_mask) if compiled else create_block_mask


def _check(
    policy: str,
    prompt_lengths: Tensor,
    length: int,
    block_length: int,
    valid: Tensor | None,
    documents: Tensor | None,
) -> None:
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
