"""The likelihood of token sequences under a plain Qwen3 checkpoint: what conversion started from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3llada.diffusion.fused_cross_entropy import fused_cross_entropy
from qwen3llada.errors import InputError
from qwen3llada.evaluation.bound import Bound, per_token
from qwen3llada.evaluation.token_batches import check_sequences, token_batches
from qwen3llada.modeling.loading import bar_for_large_weights, files_blamed
from qwen3llada.modeling.qwen3_checkpoint import read_qwen3_config


def autoregressive_nll(
    model: Any,
    sequences: Sequence[Sequence[int]],
    *,
    prompt_lengths: Sequence[int] | None = None,
    start_token: int | None = None,
    batch_tokens: int = 16384,
) -> Bound:
    """The negative log-likelihood per token, exact: nothing is drawn.

    Args:
        model: a `Qwen3ForCausalLM`.
        sequences, prompt_lengths, batch_tokens: as in `nelbo`.
        start_token: what a sequence without a prompt is put after, since the model predicts no token from nothing. Not
            counted. Qwen3's texts in training follow its end-of-text token.

    Returns: nats per predicted token, with the standard error over sequences.
    Raises: InputError as `nelbo`, and for a sequence without a prompt where there is no start token.
    """
    given = [0] * len(sequences) if prompt_lengths is None else list(prompt_lengths)
    check_sequences(sequences, given, model.config, "sequences")
    nats = sequence_nats(model, sequences, given, start_token=start_token, batch_tokens=batch_tokens)
    lengths = np.array([len(sequence) for sequence in sequences])
    return per_token(nats[:, None], lengths - np.array(given))


@torch.no_grad()
def sequence_nats(
    model: Any,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    *,
    start_token: int | None,
    batch_tokens: int,
    share: tuple[int, int] = (0, 1),
) -> NDArray[np.float64]:
    """Nats of each sequence [S], zeros where another process computes it (see `likelihood.estimate`)."""
    if start_token is None and 0 in prompt_lengths:
        raise InputError(f"sequences[{list(prompt_lengths).index(0)}] must have a prompt: there is no start token")
    shift = 0 if start_token is None else 1
    rows = [sequence if start_token is None else [start_token, *sequence] for sequence in sequences]
    nats = np.zeros(len(rows))
    training = model.training
    model.eval()
    for batch in token_batches([len(row) for row in rows], batch_tokens)[share[0] :: share[1]]:
        first = [prompt_lengths[number] + shift for number in batch]
        nats[batch] = _batch_nats(model, [rows[number] for number in batch], first)
    model.train(training)
    return nats


def _batch_nats(model: Any, rows: Sequence[Sequence[int]], first: Sequence[int]) -> NDArray[np.float64]:
    """Nats of the tokens from column `first` on, for each of B rows. Padding on the right is seen by no real token."""
    length = max(map(len, rows))
    tokens = np.zeros((len(rows), length), np.int64)
    predicted = np.zeros(tokens.shape, np.bool_)
    for number, (row, start) in enumerate(zip(rows, first, strict=True)):
        tokens[number, : len(row)] = row
        predicted[number, start : len(row)] = True
    which, columns = predicted.nonzero()
    device = model.device
    ids = torch.from_numpy(tokens).to(device)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    rows_at, columns_at = torch.from_numpy(which).to(device), torch.from_numpy(columns).to(device)
    _, values = fused_cross_entropy(
        hidden[rows_at, columns_at - 1],
        model.get_output_embeddings().weight,
        ids[rows_at, columns_at],
        torch.ones(len(which), device=device),
        return_per_token=True,
    )
    return np.bincount(which, values.double().cpu().numpy(), len(rows)).astype(np.float64)


def load_qwen3(folder: Path, **options: Any) -> Any:
    """The `Qwen3ForCausalLM` in `folder`; `options` are those of Transformers' `from_pretrained`.

    Raises: InputError or FileNotFoundError if there is none that can be loaded.
    """
    from transformers import Qwen3ForCausalLM

    config = read_qwen3_config(folder)
    with files_blamed(folder), bar_for_large_weights(folder):
        return Qwen3ForCausalLM.from_pretrained(folder, config=config, trust_remote_code=False, **options)
