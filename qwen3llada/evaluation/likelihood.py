"""Bounds on the likelihood of token sequences under a masked diffusion model, for every attention policy.

    nelbo(model, sequences, rounds=8)                         # Bound(nats per token, standard error, tokens)
    log_likelihood(model, [(prompt, answer), …], rounds=32)   # a Bound of each answer, its nats below 0

The loss and the schedule of the training do not enter, so models that were trained differently can be compared.
Which positions are predicted together follows from the policy. Policies `block`, `block_causal` and `window` predict
block by block, each given the clean blocks that it sees. A plan with a layer of policy `full` predicts the whole text
or answer as one block. With blocks of one token nothing is random: the bound is the chain rule's, left to right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3llada.errors import InputError
from qwen3llada.evaluation.bound import Bound, over_rounds, per_token
from qwen3llada.evaluation.masked_passes import MaskedPasses
from qwen3llada.evaluation.token_batches import check_sequences
from qwen3llada.modeling.attention import plan
from qwen3llada.objective.params import KernelParams
from qwen3llada.section import MAX_TOKENS

__all__ = ["Bound", "Estimates", "estimate", "log_likelihood", "nelbo"]
Policy = str | Sequence[str] | None


def nelbo(
    model: Any,
    sequences: Sequence[Sequence[int]],
    *,
    policy: Policy = None,
    block_length: int | None = None,
    rounds: int = 4,
    seed: int = 0,
    prompt_lengths: Sequence[int] | None = None,
    batch_tokens: int = 16384,
) -> Bound:
    """The negative evidence lower bound per token: no less, in expectation, than the negative log-likelihood.

    Args:
        model: a `Qwen3LLadaForMaskedLM`; computed in its dtype, cross-entropies in float32.
        sequences: token ids, of any lengths.
        policy, block_length: who sees whom; None: as the checkpoint was trained.
        rounds: masks drawn for each sequence. Where blocks hold one token they would be the same, and one is drawn.
        seed: of the masks. They depend on it and on the number of the sequence alone.
        prompt_lengths: tokens at the start of each sequence that are given and not predicted; None: none.
        batch_tokens: tokens of a forward pass, which changes nothing but time and memory.

    Returns: nats per predicted token, with the standard error over sequences.
    Raises: InputError for a setting that cannot be, a sequence that the model cannot take, and a bound that is no
        number.
    """
    found = estimate(
        model, sequences, policy=policy, block_length=block_length, rounds=rounds, seed=seed,
        prompt_lengths=prompt_lengths, batch_tokens=batch_tokens,
    )  # fmt: skip
    return found.per_token()


def log_likelihood(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    policy: Policy = None,
    block_length: int | None = None,
    rounds: int = 4,
    seed: int = 0,
    batch_tokens: int = 16384,
) -> list[Bound]:
    """A lower bound of log p(answer | prompt) of each (prompt, answer), in nats of the whole answer, so 0 or below.

    The standard error is that over the rounds, nan for a single one. It is an upper estimate, since the rounds are
    stratified. Arguments and errors as in `nelbo`.
    """
    found = estimate(
        model, [[*prompt, *answer] for prompt, answer in pairs], policy=policy, block_length=block_length,
        rounds=rounds, seed=seed, prompt_lengths=[len(prompt) for prompt, _ in pairs], batch_tokens=batch_tokens,
    )  # fmt: skip
    return found.log_likelihoods()


@dataclass(frozen=True)
class Estimates:
    """What R rounds found of S sequences. A process of several has its share of them, and zeros for the others'."""

    nats: NDArray[np.float64]  # [S, R], negative log-likelihood bound of each sequence
    tokens: NDArray[np.int64]  # [S], predicted
    levels: NDArray[np.float64]  # [S, R, 2, 10]: sums of cross-entropies by noise level, unweighted, and their counts
    exact: bool  # nothing was random

    def reduced(self, reduce: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> "Estimates":
        """Of all processes; `reduce` sums over them. Each number is one process's, so the sum is exact."""
        return replace(self, nats=reduce(self.nats), levels=reduce(self.levels))

    def per_token(self) -> Bound:
        """As `nelbo`."""
        return per_token(self.nats, self.tokens)

    def log_likelihoods(self) -> list[Bound]:
        """As `log_likelihood`."""
        errors = [0.0 if self.exact else over_rounds(row) for row in self.nats]
        means = self.nats.mean(1).tolist()
        return [Bound(-m, e, int(n)) for m, e, n in zip(means, errors, self.tokens, strict=True)]

    def by_level(self) -> tuple[list[float], list[float]]:
        """Sums of unweighted cross-entropies in ten buckets of the noise level, and how many they are."""
        sums, counts = self.levels.sum((0, 1))
        return sums.tolist(), counts.tolist()


def estimate(
    model: Any,
    sequences: Sequence[Sequence[int]],
    *,
    policy: Policy = None,
    block_length: int | None = None,
    rounds: int = 4,
    seed: int = 0,
    prompt_lengths: Sequence[int] | None = None,
    batch_tokens: int = 16384,
    keys: Sequence[int] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Estimates:
    """What `nelbo` and `log_likelihood` are made of: the bound of each sequence in each round.

    Args:
        keys: a number for each sequence, by which its masks are drawn; None: 0, 1, 2 ….
        share: (i, n): this is process i of n, counted from 0, and computes the batches i, i + n, i + 2n, …
    """
    attention = _attention(model.config, policy, block_length)
    given = [0] * len(sequences) if prompt_lengths is None else list(prompt_lengths)
    check_sequences(sequences, given, model.config, "sequences")
    _check(sequences, model.config.mask_token_id, rounds, seed)
    blockwise = "full" not in plan(attention.policy, model.config.num_hidden_layers)
    exact = blockwise and attention.block_length == 1
    passes = MaskedPasses(
        sequences=sequences,
        prompt_lengths=given,
        keys=range(len(sequences)) if keys is None else keys,
        attention=attention,
        rounds=1 if exact else rounds,
        seed=seed,
        mask_token_id=model.config.mask_token_id,
    )
    nats, levels = passes.run(model, batch_tokens, share)
    if not np.isfinite(nats).all():
        number = int(np.argmin(np.isfinite(nats).all(1)))
        raise InputError(f"sequences[{number}]: its likelihood bound is {nats[number].sum()}, not a finite number")
    return Estimates(nats, passes.predicted(), levels, exact)


def _check(sequences: Sequence[Sequence[int]], mask: int, rounds: int, seed: int) -> None:
    """Raises InputError for a sequence that holds the mask token, and for a number outside its range."""
    if rows := [number for number, sequence in enumerate(sequences) if mask in sequence]:
        raise InputError(f"sequences[{rows[0]}] holds the mask token {mask}, which no text has")
    if rounds < 1:
        raise InputError(f"{rounds=} must be at least 1")
    if not 0 <= seed < 2**63:
        raise InputError(f"{seed=} must be in [0, 2^63)")


def _attention(config: Any, policy: Policy, block_length: int | None) -> KernelParams:
    """Who sees whom. Raises InputError."""
    chosen = config.attention_policy if policy is None else policy
    plan(chosen, config.num_hidden_layers)
    length = config.block_length if block_length is None else block_length
    if not 1 <= length <= MAX_TOKENS:
        raise InputError(f"block_length={length} must be in [1, {MAX_TOKENS}]")
    named = chosen if isinstance(chosen, str) else tuple(chosen)
    knobs = {"policy": named, "block_length": length, "window_blocks": config.window_blocks}
    return KernelParams.model_validate(knobs)
