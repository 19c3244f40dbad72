"""Keys and values of a conversation's beginning, which the next turn continues."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen3llada.sampling.prefix_cache import PrefixCache


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What keys and values depend on besides the tokens before them."""

    policy: str | tuple[str, ...]
    block_length: int
    window_blocks: int
    device: torch.device
    dtype: torch.dtype


class Session:
    """What one conversation has computed, for calls that continue it.

        session = Session()
        first = generate(model, [prompt], params, session=session)
        second = generate(model, [longer_prompt], params, session=session)      # computes what is new in longer_prompt

    Kept are keys and values of whole blocks under causal policies (`block_causal`, `window`), where no later token
    changes them. A call reuses the longest beginning of its prompt that an earlier call has computed, whatever follows
    in either, so its tokens are those of a call without a session. Under other policies, for other weights, and after
    a change of the policy, the block length, guidance or precision, everything is computed anew. Weights that are
    trained further need a new session.
    """

    def __init__(self) -> None:
        self._model: weakref.ref[Any] | None = None
        self._rules: Rules | None = None
        self._tokens = torch.zeros(0, 0, dtype=torch.int64)  # [R, C] of the model's input; 2 rows under guidance
        self._cache = PrefixCache()

    @property
    def columns(self) -> int:
        """Tokens whose keys and values are kept."""
        return self._tokens.shape[1]

    def beginning(self, model: Any, rules: Rules, tokens: Tensor) -> PrefixCache:
        """Keys and values of the longest known beginning of `tokens` [R, P], in whole blocks."""
        same = self._model is not None and self._model() is model and self._rules == rules
        if not same or len(self._tokens) != len(tokens):
            return PrefixCache()
        columns = min(self.columns, tokens.shape[1])
        differs = (self._tokens[:, :columns] != tokens[:, :columns]).any(0).nonzero()
        common = int(differs[0]) if len(differs) else columns
        return self._cache.first(common // rules.block_length * rules.block_length)

    def keep(self, model: Any, rules: Rules, tokens: Tensor, cache: PrefixCache) -> None:
        """Remember the keys and values `cache` of `tokens` [R, C]; C is a multiple of the block length."""
        self._model, self._rules, self._tokens, self._cache = weakref.ref(model), rules, tokens, cache
