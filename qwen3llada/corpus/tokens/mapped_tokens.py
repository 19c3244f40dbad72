"""Tokenized samples as a memory-mapped file, read by training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qwen3llada.batches.samples import Sample
from qwen3llada.corpus.tokens.packing import TOKENS_FILE
from qwen3llada.errors import InputError


class ArrowTokens:
    """Samples of an Arrow file with random access. The file is memory-mapped, so only the parts in use are read.

    `lengths`: [n] int64, from the offsets alone. A copy in another process maps the file again.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / TOKENS_FILE
        if not path.is_file():
            raise InputError(f"{path}: no such file; tokenize_pack writes it")
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:  # a truncated file raises OSError without a path
            raise InputError(f"{path}: damaged: {' '.join(str(error).split())}") from error
        self._tokens = [_numpy(batch.column(0).values) for batch in batches]
        self._offsets = [_numpy(batch.column(0).offsets) for batch in batches]
        has_prompts = len(reader.schema) > 1
        self._prompts = [_numpy(batch.column(1)) for batch in batches] if has_prompts else None
        self._starts = np.cumsum([0] + [batch.num_rows for batch in batches])
        self.lengths = np.concatenate([np.empty(0, np.int64), *map(np.diff, self._offsets)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{index=} must be in [0, {len(self)})")
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[batch])
        start, end = self._offsets[batch][row : row + 2]
        prompt_length = None if self._prompts is None else int(self._prompts[batch][row])
        return Sample(self._tokens[batch][start:end], prompt_length)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowTokens, (self.folder,)


def load_tokens(path: str | Path) -> ArrowTokens:
    """The samples that `tokenize_pack` wrote to the folder `path`. Raises: InputError if there are none."""
    return ArrowTokens(path)


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=True)
