"""The columns of a training pass: the corrupted sequence or, under causal policies, [corrupted copies | clean copy].

A corrupted copy holds only the blocks that have a maskable position: in SFT, those from the one in which the answer
begins. With two views both corrupted copies share the clean one; under other policies a second view is a second row.
Shapes: B rows, L columns of the batch, V views, C columns of a corrupted copy, S = V·C + L columns of the pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3llada.batches.batch import Batch
from qwen3llada.diffusion.corruption import Noised
from qwen3llada.modeling.attention import document_numbers, document_positions


@dataclass(frozen=True, kw_only=True)
class Copies:
    """What the model is given: B rows (V·B, where views are rows) of S columns. Tensors are where the batch is."""

    tokens: Tensor  # [B, S] int64
    position_ids: Tensor | None  # [1 or B, S] int64; None: the columns' numbers
    prompt_lengths: Tensor  # [B] int64
    valid: Tensor | None  # [B, S] bool, None where there is no padding
    documents: Tensor | None  # [B, S] int64, numbers of documents, where attention stops at their ends
    source: Tensor | None  # [B, C] int64, column of the batch that each corrupted one comes from; None: the same
    inside: Tensor | None  # [B, C] bool, False where that would be past the batch's last column; None: nowhere
    corrupted: int  # C where there is a clean copy, else 0
    views: int  # corrupted copies in a row
    block_length: int

    def of_views(self, values: list[Tensor]) -> Tensor:
        """A value [B, L] of each view, where the loss is computed: [B, V·C], 0 past the last column; or [V·B, L]."""
        if not self.corrupted:
            return torch.cat(values)
        taken = [_taken(value, self.source) for value in values]
        return torch.cat(taken if self.inside is None else [value * self.inside for value in taken], 1)


def views_of(batch: Batch) -> list[Noised]:
    """The corrupted versions of a batch, one or two."""
    return [batch.noised] if batch.complement is None else [batch.noised, batch.complement]


def copies(batch: Batch, *, causal: bool, document_end: int | None, multiple: int = 1) -> Copies:
    """The pass of a micro-batch. `multiple`: where C depends on the prompts it is rounded up to a multiple of this."""
    views, (rows, length) = views_of(batch), batch.tokens.shape
    valid = batch.valid if batch.padded else None
    prompts = torch.zeros(rows, dtype=torch.long) if batch.prompt_lengths is None else batch.prompt_lengths
    documents = None if document_end is None else document_numbers(batch.tokens, document_end)
    if not causal:
        return Copies(
            tokens=torch.cat([view.tokens for view in views]),
            position_ids=None,
            prompt_lengths=prompts.repeat(len(views)),
            valid=None if valid is None else valid.repeat(len(views), 1),
            documents=None if documents is None else documents.repeat(len(views), 1),
            source=None,
            inside=None,
            corrupted=0,
            views=1,
            block_length=batch.step.block_length,
        )
    source = inside = None
    if batch.prompt_lengths is not None:
        source, inside = _answer_columns(batch, prompts, multiple)
        if not inside.all():
            valid = batch.valid
    positions = torch.arange(length)[None] if documents is None else document_positions(documents)
    tokens = torch.cat([*(_taken(view.tokens, source) for view in views), batch.tokens], 1)
    seen = None if valid is None else _copied(valid, source, len(views))
    if seen is not None and source is not None and inside is not None:
        seen[:, : len(views) * source.shape[1]] &= inside.repeat(1, len(views))
    return Copies(
        tokens=tokens,
        position_ids=_copied(positions, source, len(views)),
        prompt_lengths=prompts,
        valid=seen,
        documents=None if documents is None else _copied(documents, source, len(views)),
        source=source,
        inside=inside,
        corrupted=length if source is None else source.shape[1],
        views=len(views),
        block_length=batch.step.block_length,
    )


def _answer_columns(batch: Batch, prompts: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Columns [B, C] of the batch from the block in which each row's answer begins, and which are inside the batch."""
    block_length, length = batch.step.block_length, batch.tokens.shape[1]
    first = prompts // block_length * block_length
    most = int((batch.valid.sum(1) - first).max().clamp(min=1))
    columns = min(length, -(-most // multiple) * multiple)
    source = first[:, None] + torch.arange(columns)
    return source.clamp(max=length - 1), source < length


def _taken(x: Tensor, source: Tensor | None) -> Tensor:
    """`x` [1 or B, L] at the columns `source` [B, C], or all of it."""
    return x if source is None else x.expand(len(source), -1).gather(1, source)


def _copied(x: Tensor, source: Tensor | None, views: int) -> Tensor:
    """`x` [1 or B, L] in every copy: [1 or B, S]."""
    corrupted = _taken(x, source)
    return torch.cat([*[corrupted] * views, x.expand(len(corrupted), -1)], 1)
