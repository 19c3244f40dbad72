"""Memory of the rows of a running batch on the device: tokens, keys and values, with a span of columns for each row.

All spans are parts of one long axis, so rows of any lengths fit together. Shapes: T columns in all.
"""

from bisect import insort

import torch
from torch import Tensor

from qwen3llada.errors import InputError
from qwen3llada.sampling.cuda.packed_model import KeyValues, PackedModel

FIRST_COLUMNS = 2**15
PART_OF_FREE_MEMORY = 0.25  # that the first columns may take, where they are more than the first row needs
MULTIPLE = 64  # a span is a multiple of this


class Spans:
    """Which columns are taken: the first gap that is wide enough is."""

    def __init__(self, columns: int) -> None:
        self.columns, self._taken = columns, list[tuple[int, int]]()

    def take(self, count: int) -> int | None:
        """First of `count` free columns, which are taken now; None if there is no such gap."""
        first, end = 0, -(-count // MULTIPLE) * MULTIPLE
        for begin, last in self._taken:
            if end <= begin:
                break
            first, end = last, last + end - first
        if end > self.columns:
            return None
        insort(self._taken, (first, end))
        return first

    def give_back(self, first: int) -> None:
        """Free the span that begins at `first`."""
        self._taken = [span for span in self._taken if span[0] != first]


class RunningMemory:
    """Tokens, keys and values in T columns. Reallocated when it grows, so graphs that were captured before are void."""

    def __init__(self, model: PackedModel, columns: int) -> None:
        like = model.layers[0].qkv
        self.store = KeyValues.empty(model, 0, columns)  # one row of T columns
        self.tokens = torch.zeros(columns, dtype=torch.int64, device=like.device)
        self.given = torch.zeros(columns, dtype=torch.bool, device=like.device)
        self.spans = Spans(columns)

    @classmethod
    def for_first(cls, model: PackedModel, columns: int) -> "RunningMemory":
        """Memory for a first row of so many columns, and for others as far as the device has room."""
        like, most = model.layers[0].qkv, FIRST_COLUMNS
        if like.is_cuda:
            free, _ = torch.cuda.mem_get_info(like.device)
            column = 2 * len(model.layers) * model.heads.keys * model.heads.size * like.element_size()
            while most > MULTIPLE and most * column > PART_OF_FREE_MEMORY * free:
                most //= 2
        return cls(model, max(most, 1 << (columns - 1).bit_length()))

    def grow(self) -> None:
        """Double T. What is stored stays where it is. Raises InputError if the device has no room."""
        columns = 2 * self.spans.columns
        try:
            for tensors in (self.store.keys, self.store.values):
                for i, old in enumerate(tensors):  # layer by layer, so that little is held twice
                    tensors[i] = _longer(old[0], columns)[None]  # type: ignore[index]
            self.tokens, self.given = _longer(self.tokens, columns), _longer(self.given, columns)
        except torch.OutOfMemoryError:
            raise InputError(
                f"the device has no memory for keys and values of {columns} tokens: decode fewer answers together"
            ) from None
        self.spans.columns = columns


def _longer(old: Tensor, columns: int) -> Tensor:
    """`columns` long, first as `old` [T, …]. A growth that failed half-way has left some that are long enough."""
    if len(old) >= columns:
        return old
    new = old.new_zeros(columns, *old.shape[1:])
    new[: len(old)] = old
    return new
