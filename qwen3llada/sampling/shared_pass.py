"""One forward pass for rows at different positions, of different prompts, block lengths and numbers of queries.

Shapes: U rows of a pass, Q queries, K keys, W columns of a block, D hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qwen3llada.modeling.attention import POLICIES, PROMPT, is_causal, keeps_prompt, mask_of_each_kind
from qwen3llada.sampling.block_contexts import Mask, Policy, body
from qwen3llada.sampling.row_cache import RowCache

PASS_COST = {"cpu": 100, "cuda": 2048}
"""By device: a pass costs about as much as so many more tokens in another pass, so that much padding is worth it."""
PASS_TOKENS = 2**15
"""Tokens of a pass, with padding, if it has several rows. Bounds memory where many long prompts come at once."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """What one row asks of a pass. All tensors are on the CPU."""

    slot: int  # of the row in the cache
    prompt: int  # tokens before the answer, for policies that count blocks from its start
    block_length: int
    columns: Tensor  # [n] int64, ascending: positions of the queries in the row
    tokens: Tensor  # [n] int64
    block: slice  # the queries that are the block to decode


class SharedPasses:
    """Runs spans of rows through the model, and keeps what no later token can change."""

    def __init__(self, model: Any, policy: Policy) -> None:
        self.model, self.policy, self.passes = model, policy, 0
        self.keeps, self.causal = keeps_prompt(policy), is_causal(policy)
        self.cache = RowCache()

    @torch.no_grad()
    def hidden(self, spans: Sequence[Span]) -> list[Tensor]:
        """Final hidden states [W, D] of each span's block. Spans of like length share a pass."""
        found: dict[int, Tensor] = {}
        padding = PASS_COST.get(self.model.device.type, PASS_COST["cpu"])
        for together in share([len(span.columns) for span in spans], padding):
            states = self._pass([spans[i] for i in together])
            found |= {i: states[row][spans[i].block] for row, i in enumerate(together)}
            self.passes += 1
        return [found[i] for i in range(len(spans))]

    def _pass(self, spans: Sequence[Span]) -> Tensor:
        """Final hidden states [U, Q, D]; padding is on the right."""
        device = self.model.device
        columns, tokens, real = (
            pad_sequence(rows, batch_first=True).to(device)
            for rows in (
                [span.columns for span in spans],
                [span.tokens for span in spans],
                [torch.ones_like(span.columns, dtype=torch.bool) for span in spans],
            )
        )
        ends = torch.tensor([int(span.columns[-1]) + 1 for span in spans])
        mask = self._mask(spans, columns, ends)
        if not self.keeps:  # the whole canvas, so that the queries are the keys
            return body(self.model, tokens, columns, mask)
        slots = torch.tensor([span.slot for span in spans])
        with self.cache.passing(slots, columns, real, int(ends.max())):
            return body(self.model, tokens, columns, mask, self.cache)  # type: ignore[arg-type]

    def _mask(self, spans: Sequence[Span], columns: Tensor, ends: Tensor) -> Mask:
        """Who sees whom: queries in `columns` [U, Q], keys in the columns before each row's end [U]."""
        device = columns.device
        keys = torch.arange(int(ends.max()), device=device)[None]
        there = keys < ends.to(device)[:, None]  # [U, K]
        prompts, lengths = (
            torch.tensor(values, device=device)[:, None]
            for values in ([span.prompt for span in spans], [span.block_length for span in spans])
        )
        query, key = (self._numbers(x, prompts, lengths) for x in (columns, keys))

        def of(name: str) -> Tensor | None:
            sees = POLICIES[name].sees(query[:, :, None], key[:, None, :], self.model.config.window_blocks)
            seen = sees & there[:, None, :]
            return None if seen.all() else seen[:, None]

        return mask_of_each_kind(self.policy, self.model.config, of)

    def _numbers(self, columns: Tensor, prompts: Tensor, lengths: Tensor) -> Tensor:
        """Block numbers [U, n] of columns [U or 1, n] in rows with these prompts and block lengths [U, 1]."""
        if self.causal:
            return columns // lengths
        return torch.where(columns < prompts, PROMPT, (columns - prompts) // lengths)


def share(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Divide spans of these lengths into passes, the longest first.

    A pass takes in shorter spans until their padding costs as much as a pass of their own: at most `most` tokens.
    """
    together: list[int] = []
    padding = longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        more = longest - lengths[i]
        if together and (padding + more > most or (len(together) + 1) * longest > PASS_TOKENS):
            yield together
            together, padding, more = [], 0, 0
        if not together:
            longest, more = lengths[i], 0
        together.append(i)
        padding += more
    if together:
        yield together
