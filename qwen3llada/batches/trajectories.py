"""Rollouts in files as samples: prompts, answers, and the order in which the tokens were committed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3llada.artifacts import read_jsonl
from qwen3llada.batches.samples import Sample
from qwen3llada.errors import InputError


class Trajectories:
    """The rollouts of a file of JSON lines, or of all such files in a folder, as post-training writes them.

    Args:
        least: rewards below this are left out; None: none are.

    Raises: InputError naming the line that is no rollout; or if nothing is left.
    """

    def __init__(self, path: Path, least: float | None = None):
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        self._samples = [sample for file in files for sample in _samples(file, least)]
        if not self._samples:
            kept = "" if least is None else f" with a reward of {least} or more"
            raise InputError(f"{path}: no trajectories{kept}")
        self.lengths: NDArray[np.int64] = np.array([len(sample.tokens) for sample in self._samples], np.int64)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


def _samples(file: Path, least: float | None) -> Iterator[Sample]:
    for number, row in enumerate(read_jsonl(file), start=1):
        try:
            sample = _sample(row)
            good = least is None or row["reward"] >= least
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"{file}: line {number} is no rollout of post-training: {what}") from error
        if good and sample.steps is not None and len(sample.steps):
            yield sample


def _sample(row: dict[str, Any]) -> Sample:
    prompt, answer, steps = (np.array(row[name], np.int64) for name in ("prompt_tokens", "tokens", "steps"))
    if len(answer) != len(steps):
        raise ValueError(f"{len(answer)} tokens and {len(steps)} steps")
    return Sample(np.concatenate([prompt, answer]).astype(np.int32), len(prompt), steps=steps)
