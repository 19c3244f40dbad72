"""What a block sees while it is decoded, per attention policy, and which keys and values are computed only once.

A context is opened for some units (a unit is one block of one row), asked for their hidden states once a step, and
closed with their final tokens. Shapes: B rows, L columns, U units, W columns of a block, D hidden size.
"""

from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from qwen3llada.modeling.attention import POLICIES, PROMPT, is_causal, keeps_prompt, mask_of_each_kind
from qwen3llada.sampling.canvas import Block, Canvas
from qwen3llada.sampling.prefix_cache import PrefixCache
from qwen3llada.sampling.session import Rules, Session

Mask: TypeAlias = Tensor | dict[str, Tensor | None] | None  # a dict holds one mask per layer type
Policy: TypeAlias = str | tuple[str, ...]  # a tuple names one policy per layer


class Context(Protocol):
    """The sampler's access to the model."""

    passes: int  # forward passes so far

    def open(self, rows: Tensor, blocks: Tensor, width: int) -> None:
        """Start decoding units (rows [U], blocks [U]) of `width` columns. A row may be left out, but not come back."""

    def hidden(self, tokens: Tensor) -> Tensor:
        """Final hidden states [U, W, D] of the opened units with the tokens `tokens` [U, W]."""

    def close(self, tokens: Tensor) -> None:
        """Finish the opened units, whose final tokens are `tokens` [U, W]."""


def body(model: Any, tokens: Tensor, positions: Tensor, mask: Mask, cache: PrefixCache | None = None) -> Tensor:
    """Final hidden states [U, Q, D], without the vocabulary projection.

    Args:
        tokens, positions: [U, Q] int64.
        mask: bool [U, 1, 1 or Q, K], True where a key is seen; None: everything sees everything.
        cache: keys and values that the queries see before their own.
    """
    return model.model(
        input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=False
    ).last_hidden_state


def key_mask(visible: Tensor) -> Tensor | None:
    """The mask [U, 1, 1, K] of visible keys [U, K] bool; None, which is faster, if all are visible."""
    return None if visible.all() else visible[:, None, None, :]


class Rule:
    """Builds a policy's masks from block numbers."""

    def __init__(self, config: Any, policy: Policy) -> None:
        self.config, self.policy, self.causal = config, policy, is_causal(policy)

    def blocks(self, canvas: Canvas, device: torch.device) -> Tensor:
        """Block numbers [L] of the canvas's columns, 0 from `start` on; before it negative (causal) or `PROMPT`."""
        columns = torch.arange(canvas.tokens.shape[1], device=device) - canvas.start
        numbers = columns.div(canvas.block_length, rounding_mode="floor")
        return numbers if self.causal else numbers.where(columns >= 0, PROMPT)

    def mask(self, query: Tensor, key: Tensor, valid: Tensor) -> Mask:
        """The mask for queries in blocks `query` [Q] and keys in blocks `key` [K]. `valid` [U, K] hides padding."""

        def of(name: str) -> Tensor | None:
            seen = POLICIES[name].sees(query[:, None], key[None, :], self.config.window_blocks)
            if seen.all():
                return key_mask(valid)
            return (seen & valid[:, None, :])[:, None]

        return mask_of_each_kind(self.policy, self.config, of)


class FullContext:
    """Runs the whole canvas in every pass. Needed by policy `full`, exact for any policy."""

    def __init__(self, model: Any, canvas: Canvas, rule: Rule) -> None:
        self.model, self.canvas, self.rule, self.passes = model, canvas, rule, 0
        self._tokens = canvas.tokens[:, : canvas.width].clone()
        self._positions = canvas.positions[:, : canvas.width]
        self._rows = torch.arange(len(self._tokens), device=self._tokens.device)
        self._blocks = rule.blocks(canvas, self._tokens.device)[: canvas.width]

    def open(self, rows: Tensor, blocks: Tensor, width: int) -> None:
        first = self.canvas.start + int(blocks[0]) * self.canvas.block_length
        self.columns = slice(first, first + width)
        if len(rows) < len(self._rows):
            stay = torch.isin(self._rows, rows)
            self._tokens, self._positions, self._rows = self._tokens[stay], self._positions[stay], rows
        self._valid = self.canvas.valid[rows, : self.canvas.width]
        self._mask = self.rule.mask(self._blocks, self._blocks, self._valid)

    def hidden(self, tokens: Tensor) -> Tensor:
        self._tokens[:, self.columns] = tokens
        self.passes += 1
        return body(self.model, self._tokens, self._positions, self._mask)[:, self.columns]

    def close(self, tokens: Tensor) -> None:
        self._tokens[:, self.columns] = tokens


class DualCacheContext(FullContext):
    """Policy `full` with Fast-dLLM's dual cache (arXiv 2505.22618): APPROXIMATE.

    The first step of a block runs the whole canvas and keeps the keys and values of everything outside the block. The
    other steps run only the block and treat those keys and values as unchanged.
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
    """Computes keys and values that no later token can change only once. Exact.

    Policy `block` keeps the prompt; causal policies also keep every finished block. The pass that computes keys and
    values of a finished block from its clean tokens is also the first step of the next block. A session, for causal
    policies, may know some of the prompt already, and gets what is computed here.
    """

    def __init__(self, model: Any, canvas: Canvas, rule: Rule, session: Session | None = None) -> None:
        device = canvas.tokens.device
        self.model, self.canvas, self.rule, self.passes = model, canvas, rule, 0
        self._prefix, self._visible = PrefixCache(), canvas.valid[:, : canvas.start]
        self._blocks = rule.blocks(canvas, device)
        self._numbers = self._blocks[: canvas.start]  # block numbers of the prefix
        self._rows = torch.arange(len(canvas.tokens), device=device)
        # Closed blocks that are not in the prefix yet: the last one, and those before it that needed no pass.
        self._finished: tuple[Block, Tensor] | None = None
        self._session, self._tokens = session if rule.causal else None, canvas.tokens[:, : canvas.start]
        self._rules = Rules(
            policy=rule.policy,
            block_length=canvas.block_length,
            window_blocks=model.config.window_blocks,
            device=device,
            dtype=model.dtype,
        )
        if self._session is not None:
            self._prefix = self._session.beginning(model, self._rules, self._tokens)
        known = self._prefix.get_seq_length()
        if canvas.start > known:
            self.passes += 1
            new = slice(known, canvas.start)
            with self._prefix.recording():
                mask = rule.mask(self._numbers[new], self._numbers, self._visible)
                body(model, self._tokens[:, new], canvas.positions[:, new], mask, self._prefix)
        self._share()

    def _share(self) -> None:
        """Give the session the prefix as it is now."""
        if self._session is not None:
            self._session.keep(self.model, self._rules, self._tokens, self._prefix)

    def open(self, rows: Tensor, blocks: Tensor, width: int) -> None:
        index = torch.searchsorted(self._rows, rows)  # both ascending
        if len(rows) < len(self._rows):  # some rows have ended and never come back
            self._prefix, self._visible, self._rows = self._prefix.take(index), self._visible[index], rows
            if self._finished is not None:
                done, finished = self._finished
                self._finished = done.take(index), finished[index]
            index = torch.arange(len(rows), device=rows.device)
        offsets = blocks[:, None] * self.canvas.block_length + torch.arange(width, device=rows.device)
        columns = self.canvas.start + offsets  # of the first unit; the same for every unit if all are in one block
        self._opened = Block(
            positions=self.canvas.prompt_lengths[rows][:, None] + offsets,
            own=self.canvas.valid[rows[:, None], columns],
            numbers=self._blocks[columns[0]] if self.rule.causal else torch.zeros(width, device=rows.device),
        )
        self._set_mask(self._visible[index])
        self._cache = self._prefix.take(index) if len(rows) > len(self._rows) else self._prefix

    def _set_mask(self, visible: Tensor) -> None:
        """Set the mask of the opened block's queries on the prefix and on the block itself."""
        block = self._opened
        numbers = torch.cat([self._numbers, block.numbers])
        self._mask = self.rule.mask(block.numbers, numbers, torch.cat([visible, block.own], 1))

    def hidden(self, tokens: Tensor) -> Tensor:
        self.passes += 1
        if self._finished is not None:
            return self._join(*self._finished, tokens)
        return body(self.model, tokens, self._opened.positions, self._mask, self._cache)

    def _join(self, done: Block, finished: Tensor, tokens: Tensor) -> Tensor:
        """One pass: keys and values of the finished blocks, and the first step of the opened one."""
        self._finished, block, width = None, self._opened, finished.shape[1]
        queries = torch.cat([done.numbers, block.numbers])
        keys = torch.cat([self._numbers, queries])
        mask = self.rule.mask(queries, keys, torch.cat([self._visible, done.own, block.own], 1))
        positions = torch.cat([done.positions, block.positions], 1)
        with self._prefix.recording(first=width):
            states = body(self.model, torch.cat([finished, tokens], 1), positions, mask, self._prefix)
        self._visible = torch.cat([self._visible, done.own], 1)
        self._numbers = torch.cat([self._numbers, done.numbers])
        if self._session is not None:
            self._tokens = torch.cat([self._tokens, finished], 1)
            self._share()
        self._set_mask(self._visible)
        return states[:, width:]

    def close(self, tokens: Tensor) -> None:
        if not self.rule.causal:
            return
        if self._finished is None:
            self._finished = self._opened, tokens.clone()
        else:  # the block had no masks, so no pass that the earlier one could have joined
            done, finished = self._finished
            self._finished = done.followed_by(self._opened), torch.cat([finished, tokens], 1)


def open_context(model: Any, canvas: Canvas, policy: Policy, cache: str, session: Session | None = None) -> Context:
    """The fastest exact context for a policy, or the approximate one if `cache` asks for it."""
    rule = Rule(model.config, policy)
    if keeps_prompt(policy):
        return PrefixContext(model, canvas, rule, session)
    if cache == "dual":
        return DualCacheContext(model, canvas, rule)
    return FullContext(model, canvas, rule)
