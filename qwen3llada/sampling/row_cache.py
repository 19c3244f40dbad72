"""Keys and values of rows at different positions, for passes that rows share.

Each row has one slot. A token's column in the slot is its position in the row, so rows of different lengths need no
common alignment. A pass writes the keys and values of its queries to their columns and reads a range of columns from
column 0. That range may hold columns that a row must not attend to, so the caller's attention mask has to hide them.

Passed to the model as `past_key_values`; the model calls only `update` and `get_seq_length`. Shapes: S slots, C
columns, U rows of a pass, Q queries, K keys, H key/value heads, D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

MULTIPLE = 64  # columns are a multiple of this
SLACK = 4  # memory is given back when it is this many times what the rows need


class RowCache:
    """Keys and values [S, H, C, D] of each layer. The last column is a spare that nobody reads."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._slots = self._columns = 0

    def reserve(self, slots: int, columns: int) -> None:
        """Make room for `slots` rows of `columns` tokens. Keys and values stored within that room are kept.

        Memory is given back once the cache is `SLACK` times larger than that room.
        """
        columns = -(-columns // MULTIPLE) * MULTIPLE
        fits = slots <= self._slots and columns <= self._columns
        if fits and self._slots * self._columns <= SLACK * slots * columns:
            return
        if not fits and slots * columns:  # grow what there is, so that a row that comes later finds room
            slots, columns = max(slots, self._slots), max(columns, self._columns)
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = self._resized(keys, slots, columns), self._resized(values, slots, columns)
        self._slots, self._columns = slots, columns

    @staticmethod
    def _resized(old: Tensor, slots: int, columns: int) -> Tensor:
        new = old.new_zeros(slots, old.shape[1], columns + 1, old.shape[3])  # not empty: a hidden NaN would be seen
        kept = min(slots, old.shape[0]), min(columns, old.shape[2] - 1)
        new[: kept[0], :, : kept[1]] = old[: kept[0], :, : kept[1]]
        return new

    def clear(self) -> None:
        """Free all memory."""
        self._layers, self._slots, self._columns = {}, 0, 0

    @contextmanager
    def passing(self, slots: Tensor, columns: Tensor, real: Tensor, keys: int) -> Iterator[None]:
        """Use the cache for the pass made in this context.

        Args:
            slots: [U] int64 on the CPU.
            columns: [U, Q] int64, where the queries' keys and values are written.
            real: [U, Q] bool, False at padding, which is written to the spare column.
            keys: number of columns that the pass reads, from the first.
        """
        self._places = slots.to(columns.device)[:, None], columns.where(real, self._columns)
        self._in_order = bool((slots == torch.arange(len(slots))).all())
        self._keys, self._queries = keys, columns.shape[1]
        try:
            yield
        finally:
            del self._places

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values [U, H, Q, D]; what layer `layer_idx` attends to: [U, H, K, D] each."""
        if layer_idx not in self._layers:
            shape = self._slots, keys.shape[1], self._columns + 1, keys.shape[3]
            self._layers[layer_idx] = keys.new_zeros(shape), values.new_zeros(shape)
        first, second = (self._through(*pair) for pair in zip(self._layers[layer_idx], (keys, values), strict=True))
        return first, second

    def _through(self, stored: Tensor, new: Tensor) -> Tensor:
        rows, columns = self._places
        stored[rows, :, columns] = new.transpose(1, 2)
        seen = stored[:, :, : self._keys]
        return seen[: len(rows)] if self._in_order else seen.index_select(0, rows[:, 0])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Keys of the pass beside its queries' own, as the model counts them."""
        return self._keys - self._queries
