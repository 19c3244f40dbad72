"""Batches by tokens: rows of similar length together, as many as fit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3llada.errors import InputError


def token_batches(columns: Sequence[int] | NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Indices of the rows in each batch: sorted by length, the longest first, as many as fit once padded.

    `columns`: of each row. A row that alone exceeds `batch_tokens` is a batch of its own. The longest batches come
    first, so that memory that does not suffice is found missing at once.
    Raises: InputError if `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise InputError(f"{batch_tokens=} must be at least 1")
    widths = np.asarray(columns)
    order = np.argsort(-widths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = max(1, batch_tokens // max(1, int(widths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def check_sequences(sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int], config: Any, name: str) -> None:
    """Raises InputError, naming the sequence, for what a model of that `config` cannot predict.

    `prompt_lengths`: tokens of each sequence that are given.
    """
    if not sequences:
        raise InputError(f"{name} must hold at least one, given none")
    if len(prompt_lengths) != len(sequences):
        raise InputError(
            f"prompt_lengths must hold one number for each of {len(sequences)} {name}, given {len(prompt_lengths)}"
        )
    limit, vocabulary = config.max_position_embeddings, config.vocab_size
    for number, (sequence, prompt) in enumerate(zip(sequences, prompt_lengths, strict=True)):
        where = f"{name}[{number}] of {len(sequence)} tokens"
        if not 0 <= prompt < len(sequence):
            raise InputError(f"{where} must have at least one token after its prompt of {prompt}")
        if len(sequence) > limit:
            raise InputError(f"{where} must not exceed the model's max_position_embeddings={limit}")
        if min(sequence) < 0 or max(sequence) >= vocabulary:
            outside = next(token for token in sequence if not 0 <= token < vocabulary)
            raise InputError(f"{name}[{number}] holds token {outside}, must be in [0, {vocabulary})")
