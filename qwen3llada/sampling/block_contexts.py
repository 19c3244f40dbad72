"""What a block sees while it is decoded, by attention policy, and which part of it is computed only once.

A context is opened for some units (a unit is one block of one row), asked for their hidden states once a step, and
closed with their final tokens. Shapes: B rows, L columns, U units, W columns of a block, D hidden size.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from qwen3llada.modeling.attention import attention_bias
from qwen3llada.sampling.canvas import Canvas
from qwen3llada.sampling.prefix_cache import PrefixCache


class Context(Protocol):
    """How the sampler reaches the model."""

    passes: int  # forward passes made so far

    def open(self, rows: Tensor, blocks: Tensor, width: int) -> None:
        """Start decoding the units (rows [U], blocks [U]), `width` columns of each. Rows may leave, none returns."""

    def hidden(self, tokens: Tensor) -> Tensor:
        """Final hidden states [U, W, D] of the opened units, which now hold `tokens` [U, W]."""

    def close(self, tokens: Tensor) -> None:
        """The opened units are finished and hold `tokens` [U, W]."""


def body(
    model: Any, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: PrefixCache | None = None
) -> Tensor:
    """Final hidden states [U, Q, D], without the vocabulary projection.

    Args:
        tokens, positions: [U, Q] int64.
        mask: bool [U, 1, 1 or Q, K], True where a key is seen; None where everything sees everything.
        cache: the keys and values that the queries see before their own.
    """
    return model.model(
        input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=False
    ).last_hidden_state


def key_mask(visible: Tensor) -> Tensor | None:
    """The mask [U, 1, 1, K] of visible keys [U, K] bool; None if there is nothing to hide, which is faster."""
    return None if visible.all() else visible[:, None, None, :]


class FullContext:
    """Every pass runs the whole canvas: what policy `full` needs, and exact for any policy."""

    def __init__(self, model: Any, canvas: Canvas, policy: str) -> None:
        self.model, self.canvas, self.policy, self.passes = model, canvas, policy, 0
        self._tokens = canvas.tokens[:, : canvas.width].clone()
        self._positions = canvas.positions[:, : canvas.width]
        self._rows = torch.arange(len(self._tokens), device=self._tokens.device)

    def open(self, rows: Tensor, blocks: Tensor, width: int) -> None:
        first = self.canvas.start + int(blocks[0]) * self.canvas.block_length
        self.columns = slice(first, first + width)
        if len(rows) < len(self._rows):
            stay = torch.isin(self._rows, rows)
            self._tokens, self._positions, self._rows = self._tokens[stay], self._positions[stay], rows
        self._valid = self.canvas.valid[rows, : self.canvas.width]
        self._mask = self._policy_mask()

    def _policy_mask(self) -> Tensor | None:
        if self.policy == "full":
            return key_mask(self._valid)
        starts = torch.full((len(self._valid),), self.canvas.start, device=self._valid.device)
        width, block_length = self._valid.shape[1], self.canvas.block_length
        return attention_bias(self.policy, starts, width, block_length, self._valid, torch.bool)

    def hidden(self, tokens: Tensor) -> Tensor:
        self._tokens[:, self.columns] = tokens
        self.passes += 1
        return body(self.model, self._tokens, self._positions, self._mask)[:, self.columns]

    def close(self, tokens: Tensor) -> None:
        self._tokens[:, self.columns] = tokens


class DualCacheContext(FullContext):
    """Policy `full` with Fast-dLLM's dual cache (arXiv 2505.22618): APPROXIMATE.

    The first step of a block runs the whole canvas and keeps the keys and values of everything outside the block; the
    other steps run the block alone against them, as if what they depend on had not changed.
    """

    def open(self, rows: Tensor, blocks: Tensor, width: int) -> None:
        super().open(rows, blocks, width)
        self._cache: PrefixCache | None = None
        outside = [self._valid[:, : self.columns.start], self._valid[:, self.columns.stop :]]
        self._block_mask = key_mask(torch.cat([*outside, self._valid[:, self.columns]], 1))

    def hidden(self, tokens: Tensor) -> Tensor:
        if self._cache is None:
            recorded = PrefixCache()
            self._tokens[:, self.columns] = tokens
            with recorded.recording():
                states = body(self.model, self._tokens, self._positions, self._mask, recorded)
            self._cache = recorded.without(self.columns)
            states = states[:, self.columns]
        else:
            states = body(self.model, tokens, self._positions[:, self.columns], self._block_mask, self._cache)
        self.passes += 1
        return states


class PrefixContext:
    """Policies `block` and `block_causal`: keys and values that no later token can change are computed once. Exact.

    Under `block` that is the prompt; under `block_causal` also every finished block.
    """

    def __init__(self, model: Any, canvas: Canvas, *, causal: bool) -> None:
        self.model, self.canvas, self.causal, self.passes = model, canvas, causal, 0
        self._prefix, self._visible = PrefixCache(), canvas.valid[:, : canvas.start]
        self._rows = torch.arange(len(canvas.tokens), device=canvas.tokens.device)
        self._finished: Tensor | None = None  # tokens of the block closed last, not yet part of the prefix
        self._positions: Tensor  # [U, W] of the opened units
        self._own: Tensor  # [U, W] bool, which of them are real
        if canvas.start:
            prompt = canvas.tokens[:, : canvas.start]
            self._record(prompt, canvas.positions[:, : canvas.start], self._visible)

    def open(self, rows: Tensor, blocks: Tensor, width: int) -> None:
        index = torch.searchsorted(self._rows, rows)  # both ascending
        if len(rows) < len(self._rows):  # rows have ended: nothing asks for them again
            self._prefix, self._visible, self._rows = self._prefix.take(index), self._visible[index], rows
            if self._finished is not None:
                self._finished, self._positions, self._own = (
                    x[index] for x in (self._finished, self._positions, self._own)
                )
            index = torch.arange(len(rows), device=rows.device)
        if self._finished is not None:  # only now is it known which rows go on
            self._visible = torch.cat([self._visible, self._own], 1)
            self._record(self._finished, self._positions, self._visible)
            self._finished = None
        offsets = blocks[:, None] * self.canvas.block_length + torch.arange(width, device=rows.device)
        self._positions = self.canvas.prompt_lengths[rows][:, None] + offsets
        self._own = self.canvas.valid[rows[:, None], self.canvas.start + offsets]
        self._mask = key_mask(torch.cat([self._visible[index], self._own], 1))
        self._cache = self._prefix.take(index) if len(rows) > len(self._rows) else self._prefix

    def hidden(self, tokens: Tensor) -> Tensor:
        self.passes += 1
        return body(self.model, tokens, self._positions, self._mask, self._cache)

    def close(self, tokens: Tensor) -> None:
        if self.causal:
            self._finished = tokens

    def _record(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> None:
        self.passes += 1
        with self._prefix.recording():
            body(self.model, tokens, positions, key_mask(visible), self._prefix)


def open_context(model: Any, canvas: Canvas, policy: str, cache: str) -> Context:
    """The fastest exact context for an attention policy, or the approximate one that `cache` asks for."""
    if policy in ("block", "block_causal"):
        return PrefixContext(model, canvas, causal=policy == "block_causal")
    if cache == "dual":
        return DualCacheContext(model, canvas, policy)
    return FullContext(model, canvas, policy)
