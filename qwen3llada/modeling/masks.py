"""Attention masks of whole training passes, dense or as FlexAttention's tiles.

A pass runs over S columns. Under policies whose blocks do not depend on order (`full`, `block`) these are the corrupted
sequence. Under causal policies they are [corrupted copies | clean copy], as in BD3-LM (arXiv 2503.09573, section 3.2):

    key          corrupted      clean
    query      +------------+------------+
    corrupted  | own block  | earlier    |      of the same copy; of the blocks that the policy shows
               +------------+------------+
    clean      | nothing    | up to own  |      of the blocks that the policy shows
               +------------+------------+

Shapes: B rows, V corrupted copies of C columns each, a clean copy of L columns, S = V·C + L.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from qwen3llada.modeling.attention import POLICIES, blocks_of_columns, check_arguments

if TYPE_CHECKING:  # torch takes seconds to import
    import torch
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask


BY_LIMITS = ("block_causal", "window")  # policies whose comparison `sees_by_limits` writes another way


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where the columns of a pass stand in their sequences.

    `corrupted` = C where the pass holds corrupted copies and then a clean one, 0 where it holds one copy alone.
    """

    blocks: Tensor  # [B or 1, S] int64, block numbers; [1, S] where they are the same in all rows
    documents: Tensor | None = None  # [B, S], numbers of documents
    valid: Tensor | None = None  # [B, S] bool, False at padding
    corrupted: int = 0
    views: int = 1
    block_length: int = 0  # above 0: every copy holds the same columns from position 0 on, cut into such blocks

    @property
    def first_clean(self) -> int:
        """The column at which the clean copy begins."""
        return self.corrupted * self.views


class _Side(NamedTuple):
    """Queries or keys: their columns, block numbers and documents, in shapes that broadcast."""

    column: Tensor
    block: Tensor
    document: Tensor | None


def _sees(policy: str, window: int, columns: Columns, query: _Side, key: _Side) -> Tensor:
    """Whether queries see keys, padding left aside."""
    seen = POLICIES[policy].sees(query.block, key.block, window)
    if columns.corrupted:
        clean_query, clean_key = query.column >= columns.first_clean, key.column >= columns.first_clean
        same_copy = query.column // columns.corrupted == key.column // columns.corrupted
        own = ~clean_query & ~clean_key & same_copy & (query.block == key.block)
        seen = own | (clean_key & seen & (clean_query | (query.block != key.block)))
    if query.document is not None and key.document is not None:
        seen = seen & (query.document == key.document)
    return seen


class Limits(NamedTuple):
    """A mask that follows from the columns' numbers: copies of `corrupted` columns each, the last of them clean."""

    corrupted: int
    views: int
    block_length: int
    window_blocks: int  # earlier blocks that a query sees; -1: all


def sees_by_limits(limits: Limits, query: Any, key: Any) -> Any:
    """`_sees` under `Limits`: the key is compared with limits that the query alone sets.

    A query sees the block of its own copy that it stands in, and clean blocks before that. A kernel computes the limits
    once for a query. For each pair it then takes four comparisons and no division.

    query, key: columns, as tensors or in whatever form kernels have numbers.
    """
    size, block, first_clean = limits.corrupted, limits.block_length, limits.corrupted * limits.views
    column = query % size
    start = column // block * block
    own = query - column + start
    seen_own = (key >= own) & (key < own + block)
    if size % block:  # the last block of a copy ends with the copy
        seen_own = seen_own & (key < query - column + size)
    seen_earlier = (key >= first_clean) & (key < first_clean + start)
    if limits.window_blocks >= 0:
        seen_earlier = seen_earlier & (key >= first_clean + start - limits.window_blocks * block)
    return seen_own | seen_earlier


def dense_mask(policy: str, columns: Columns, window_blocks: int) -> Tensor:
    """The mask as booleans, True where a query sees a key: [B or 1, 1, S, S].

    Where nothing but padding is hidden all queries see the same keys: [B, 1, 1, S].
    """
    import torch

    if policy == "full" and not columns.corrupted and columns.documents is None and columns.valid is not None:
        return columns.valid[:, None, None, :]
    index = torch.arange(columns.blocks.shape[1], device=columns.blocks.device)
    query, key = (
        _Side(
            index.view(shape),
            columns.blocks.view(-1, *shape),
            None if columns.documents is None else columns.documents.view(-1, *shape),
        )
        for shape in ((len(index), 1), (1, len(index)))
    )
    visible = _sees(policy, window_blocks, columns, query, key)
    visible = visible.expand(-1, len(index), len(index)) if visible.dim() == 3 else visible[None]
    if columns.valid is not None:
        visible = visible & columns.valid[:, None, :]
    return visible[:, None]


def flex_mask(policy: str, columns: Columns, window_blocks: int, rows: int, queries: int | None = None) -> BlockMask:
    """The same mask for FlexAttention, whose kernel skips the tiles that hold no visible pair: for [`rows`, 1, S, S].

    One mask serves all rows where nothing in `columns` differs between them. Its attribute `limits`, if not
    None, says all about it: kernels that take arithmetic alone can compute it.
    """
    blocks, documents, valid = columns.blocks.int(), columns.documents, columns.valid
    alike = len(blocks) == 1
    one_for_all = alike and documents is None and valid is None

    limits = None
    if one_for_all and columns.block_length and policy in BY_LIMITS:
        seen_back = window_blocks if POLICIES[policy].windowed else -1
        limits = Limits(columns.corrupted, columns.views, columns.block_length, seen_back)

    def block(b: Tensor, column: Tensor) -> Tensor:
        if columns.block_length:  # arithmetic is faster than memory
            return column % columns.corrupted // columns.block_length
        return blocks[b * 0 if alike else b, column]

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if limits is not None:
            return sees_by_limits(limits, q, k)
        query = _Side(q, block(b, q), None if documents is None else documents[b, q])
        key = _Side(k, block(b, k), None if documents is None else documents[b, k])
        seen = _sees(policy, window_blocks, columns, query, key)
        return seen if valid is None else seen & valid[b, k]

    length, device = blocks.shape[1], blocks.device
    build = _create_block_mask(compiled=device.type == "cuda")
    mask = build(
        visible, B=None if one_for_all else rows, H=None, Q_LEN=queries or length, KV_LEN=length, device=device
    )
    mask.limits = limits
    return mask


def blocks_of_copies(corrupted: int, views: int, clean: int, block_length: int, device: torch.device) -> Tensor:
    """Block numbers [1, S] of a pass whose corrupted copies hold the columns of the clean one, from position 0 on."""
    import torch

    numbers = torch.arange(clean, device=device) // block_length
    return torch.cat([*[numbers[:corrupted]] * views, numbers])[None]


@lru_cache(maxsize=16)  # of the shapes of a run and of its evaluation, for each type of layer
def mask_of_shape(
    policy: str,
    window_blocks: int,
    corrupted: int,
    views: int,
    length: int,
    block_length: int,
    flex: bool,
    device: torch.device,
    queries: int | None = None,
) -> Any:
    """The mask of a pass of `length` columns in which nothing differs between rows: made once for its shape.

    queries: of the first so many columns, for FlexAttention alone; None: of all.
    """
    blocks = blocks_of_copies(corrupted, views, length - corrupted * views, block_length, device)
    same = length == corrupted * (views + 1)
    columns = Columns(blocks=blocks, corrupted=corrupted, views=views, block_length=block_length if same else 0)
    return flex_mask(policy, columns, window_blocks, 1, queries) if flex else dense_mask(policy, columns, window_blocks)


def block_mask(
    policy: str,
    prompt_lengths: Tensor,
    length: int,
    block_length: int,
    valid: Tensor | None = None,
    *,
    documents: Tensor | None = None,
    window_blocks: int = 4,
) -> BlockMask | None:
    """The mask of one copy for FlexAttention: arguments and errors as in `attention.attention_bias`.

    Returns a `BlockMask` [B,1,L,L], or None where `attention_bias` does.
    """
    check_arguments(policy, prompt_lengths, length, block_length, valid, documents)
    if policy == "full" and valid is None and documents is None:
        return None
    blocks = blocks_of_columns(policy, prompt_lengths, length, block_length, documents)
    columns = Columns(blocks=blocks, documents=documents, valid=valid)
    return flex_mask(policy, columns, window_blocks, len(prompt_lengths))


@cache
def _create_block_mask(compiled: bool) -> Callable[..., Any]:
    """Compiled, the S·S pairs are never held at once; FlexAttention is compiled only on a GPU, so this is, too."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask  # takes a second to import

    return torch.compile(create_block_mask) if compiled else create_block_mask
