"""A training sample, and the two interfaces for reading samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Sample(NamedTuple):
    """Token ids [n], the length of the prompt (SFT), and the position in a stream after the sample.

    Of a trajectory also the steps [answer] in which the tokens of the answer were committed.
    """

    tokens: NDArray[Any]
    prompt_length: int | None = None
    cursor: Any = None
    steps: NDArray[np.int64] | None = None


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
    """Pretraining samples of equal length in one endless order, made on demand, without random access.

    At the end of the data the stream starts over, so that every step is full and all ranks take the same number.
    """

    sample_length: int

    def read(self, positions: Iterator[int], cursors: Mapping[int, Any]) -> Iterator[Sample]:
        """The samples at `positions` (endless, increasing), in that order. Other ranks and workers read the rest.

        `cursors`: position -> cursor of earlier samples, read by any rank, as kept by `needed` after a finished step.
        They allow going on without reading everything before. Empty: start at the beginning.
        """

    def needed(self, cursors: Mapping[int, Any]) -> dict[int, Any]:
        """The `cursors` that `read` needs to go on after the last of them. Their number is bounded."""


class Spread:
    """`samples` samples of a dataset at even distances; all for 0 or if there are fewer."""

    def __init__(self, dataset: TokenDataset, samples: int):
        self._dataset = dataset
        count = min(samples or len(dataset), len(dataset))
        self._indices = np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)
        self.lengths: NDArray[np.int64] = np.asarray(dataset.lengths)[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[int(self._indices[index])]
