"""What training data consist of, and the two ways to get at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Sample(NamedTuple):
    """Token ids [n] and, in SFT, how many of them are the prompt; from a stream also where to go on reading."""

    tokens: NDArray[Any]
    prompt_length: int | None = None
    cursor: Any = None


@runtime_checkable
class TokenDataset(Protocol):
    """Samples with random access."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, [n]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class TokenStream(Protocol):
    """Pretraining samples of one length in one endless order, made on demand: no length, no random access.

    Where the data ends the stream starts over, so that every step is full and all processes take the same number.
    """

    sample_length: int

    def read(self, positions: Iterator[int], cursors: Mapping[int, Any]) -> Iterator[Sample]:
        """The samples at `positions` (endless, rising), in that order; what lies between is for other readers.

        `cursors` maps positions of earlier samples, whichever process read them, to the cursors that these carried:
        what `needed` left of all up to a finished step, enough to go on after it without reading all before it.
        Empty: from the beginning.
        """

    def needed(self, cursors: Mapping[int, Any]) -> dict[int, Any]:
        """Those of `cursors` without which `read` cannot go on after the last of them; their number is bounded."""


class Spread:
    """`samples` of a dataset's samples at even distances; all of them for 0 or more than there are."""

    def __init__(self, dataset: TokenDataset, samples: int):
        self._dataset = dataset
        count = min(samples or len(dataset), len(dataset))
        self._indices = np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)
        self.lengths: NDArray[np.int64] = np.asarray(dataset.lengths)[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[int(self._indices[index])]
