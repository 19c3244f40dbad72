"""Keys and values that are computed once and read by every later pass.

Passed to the model as `past_key_values`; the model calls only `update` and `get_seq_length`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class PrefixCache:
    """A key/value prefix, read-only except inside `recording()`.

    Outside, a layer attends to [prefix, its own new keys] and nothing is stored, so a block can be run repeatedly.
    Inside, the pass's keys and values are appended. Shapes: [U, key/value heads, K, head_dim] per layer.
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._recorded: int | None = 0  # number of a pass's new positions to append; None: all

    @contextmanager
    def recording(self, first: int | None = None) -> Iterator[None]:
        """Append the keys and values of the pass made in this context, or only those of its `first` positions."""
        self._recorded = first
        try:
            yield
        finally:
            self._recorded = 0

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values that layer `layer_idx` attends to: the prefix's and then the new ones."""
        new, before = keys.shape[2], self.get_seq_length(layer_idx)
        if layer_idx in self._layers:
            past_keys, past_values = self._layers[layer_idx]
            keys, values = torch.cat([past_keys, keys], 2), torch.cat([past_values, values], 2)
        if self._recorded != 0:
            kept = before + (new if self._recorded is None else self._recorded)
            self._layers[layer_idx] = keys[:, :, :kept], values[:, :, :kept]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions in the prefix."""
        return self._layers[layer_idx][0].shape[2] if layer_idx in self._layers else 0

    def __getitem__(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer's prefix."""
        return self._layers[layer_idx]

    def __len__(self) -> int:
        return len(self._layers)

    def take(self, rows: Tensor) -> "PrefixCache":
        """A cache of the given rows, which may repeat: [U] int64."""
        return self._map(lambda x: x.index_select(0, rows))

    def first(self, columns: int) -> "PrefixCache":
        """A cache of the first `columns` positions; empty for 0."""
        return self._map(lambda x: x[:, :, :columns]) if columns else PrefixCache()

    def without(self, columns: slice) -> "PrefixCache":
        """A cache of all positions but `columns`."""
        return self._map(lambda x: torch.cat([x[:, :, : columns.start], x[:, :, columns.stop :]], 2))

    def _map(self, function: Any) -> "PrefixCache":
        cache = PrefixCache()
        cache._layers = {i: (function(keys), function(values)) for i, (keys, values) in self._layers.items()}
        return cache
