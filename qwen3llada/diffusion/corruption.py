"""Corruption of token sequences: choose positions by their mask probability, and mask or replace them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3llada.diffusion.keyed_random import Purpose, position_uniforms, sample_uniforms
from qwen3llada.diffusion.levels import by_position, index_array, mask_probabilities, noise_levels
from qwen3llada.diffusion.noise_types import NOISE_TYPES
from qwen3llada.diffusion.params import NoiseParams

if TYPE_CHECKING:
    from torch import Tensor


class Noised(NamedTuple):
    """A corrupted batch. p is the same for all of a sequence ([B]), or per position ([B, L])."""

    tokens: Tensor  # [B, L] int64
    masked: Tensor  # [B, L] bool, corrupted positions
    p_mask: Tensor  # [B] or [B, L] float32, probability of masking a position

    @property
    def p_by_position(self) -> Tensor:
        """p broadcastable to [B, L]: [B, 1] or [B, L]."""
        return by_position(self.p_mask, self.tokens.shape, "p_mask")


class _SampleDraws(NamedTuple):
    """Four uniforms per sample, each [B]: whether to cut and to which length, whether to mask a span and from where."""

    cut: NDArray[np.float64]
    length: NDArray[np.float64]
    span: NDArray[np.float64]
    span_start: NDArray[np.float64]


def random_lengths(
    lengths: NDArray[np.int64], probability: float, *, indices: NDArray[np.int64], seed: int, epoch: int
) -> NDArray[np.int64]:
    """Lengths [B] after cutting: with `probability` a sequence keeps its first n tokens, n uniform in [1, length].

    LLaDA (arXiv 2502.09992, appendix B.1) cuts 1 % of the pretraining sequences. `lengths`, `indices`: [B].
    """
    draws = _SampleDraws(*sample_uniforms(indices, seed=seed, epoch=epoch).T)
    return np.where(draws.cut < probability, 1 + np.floor(draws.length * lengths).astype(np.int64), lengths)


def maskable_positions(tokens: Tensor, valid: Tensor | None, prompt_lengths: Tensor | None) -> Tensor:
    """Bool [B, L]: real tokens (`valid` [B, L], None = all) after the prompt (`prompt_lengths` [B], None = none)."""
    import torch

    batch, length = tokens.shape
    for name, mask, shape in (("valid", valid, (batch, length)), ("prompt_lengths", prompt_lengths, (batch,))):
        if mask is not None and tuple(mask.shape) != shape:
            raise ValueError(f"{name} of shape {tuple(mask.shape)} must have shape {shape}")
    maskable = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid.bool()
    if prompt_lengths is not None:
        maskable = maskable & (torch.arange(length, device=tokens.device) >= prompt_lengths[:, None])
    return maskable


def add_noise(
    tokens: Tensor,
    params: NoiseParams,
    *,
    mask_token_id: int,
    indices: Tensor,
    seed: int,
    epoch: int,
    levels: Tensor | None = None,
    valid: Tensor | None = None,
    prompt_lengths: Tensor | None = None,
    real_tokens: Tensor | Sequence[int] | None = None,
    at_least_one: bool = False,
) -> Noised:
    """Corrupt `tokens` [B, L]. The result for a sample depends only on (seed, epoch, its index).

    `indices` [B]: position of each sample in the epoch's order. `levels`: noise levels t of the sequences [B] or of
    their positions [B, L]; None = `noise_levels`. p_mask has the same shape. `valid` [B, L] bool: real tokens, None =
    all. `prompt_lengths` [B]: leading tokens that are never corrupted. `real_tokens` [R]: ids that noise types draw.
    `at_least_one`: if the draw masks nothing, mask one maskable position of the sequence. Only for losses without the
    weight 1/p, because p is not the probability of a forced mask. If positions have levels and a sequence is to be
    masked in spans, each run of positions with equal level gets one span.
    Raises ValueError for shapes that do not fit, negative indices, and `real_tokens` missing or holding the mask token.
    """
    import torch

    if len(indices) != len(tokens):
        raise ValueError(f"indices of {len(indices)} samples must be as many as the rows of tokens, {len(tokens)}")
    order = index_array(indices)
    maskable = maskable_positions(tokens, valid, prompt_lengths)
    levels = noise_levels(indices, seed=seed, epoch=epoch, t_range=params.t_range) if levels is None else levels.cpu()
    p_mask = mask_probabilities(levels, params)
    allowed, p = maskable.cpu().numpy(), by_position(p_mask, tokens.shape, "levels").double().numpy()

    uniforms = position_uniforms(order, tokens.shape[1], Purpose.MASK, seed=seed, epoch=epoch)
    masked = _independent_mask(allowed, p, uniforms, at_least_one)
    if params.mask_contiguous_region_prob > 0:
        draws = _SampleDraws(*sample_uniforms(order, seed=seed, epoch=epoch).T)
        is_span = draws.span < params.mask_contiguous_region_prob
        if p_mask.dim() == 1:
            spans = _span_mask(allowed, p[:, 0], draws.span_start, at_least_one)
        else:
            starts = position_uniforms(order, tokens.shape[1], Purpose.BLOCK_SPAN, seed=seed, epoch=epoch)
            spans = _spans_of_levels(allowed, p, starts, at_least_one)
        masked = np.where(is_span[:, None], spans, masked)

    chosen = torch.from_numpy(masked).to(tokens.device)
    drawn = _KeyedDraws(tokens.shape, order, seed, epoch, params, real_tokens, mask_token_id)
    noisy = NOISE_TYPES[params.noise_type].corrupt(tokens, chosen, mask_token_id, drawn)
    return Noised(noisy, chosen, p_mask.to(tokens.device))


def complement(
    tokens: Tensor,
    noised: Noised,
    params: NoiseParams,
    *,
    mask_token_id: int,
    indices: Tensor,
    seed: int,
    epoch: int,
    valid: Tensor | None = None,
    prompt_lengths: Tensor | None = None,
    real_tokens: Tensor | Sequence[int] | None = None,
) -> Noised:
    """The second view of a batch: corrupt exactly the maskable positions that `noised` left alone, p2 = 1 - p.

    Fast-dLLM v2 (arXiv 2509.26328), LLaDA2. Pass the arguments of the `add_noise` call that made `noised`.
    """
    import torch

    masked = maskable_positions(tokens, valid, prompt_lengths) & ~noised.masked
    order = index_array(indices)
    drawn = _KeyedDraws(tokens.shape, order, seed, epoch, params, real_tokens, mask_token_id)
    noisy = NOISE_TYPES[params.noise_type].corrupt(tokens, masked, mask_token_id, drawn)
    # If p is 1, no position is left; the clamp only keeps the weight 1/p2 finite.
    return Noised(noisy, masked, (1 - noised.p_mask).clamp(min=torch.finfo(torch.float32).tiny))


class _KeyedDraws:
    """Draws for noise types (see `noise_types.Draws`), computed on demand."""

    def __init__(
        self,
        shape: Sequence[int],
        order: NDArray[np.int64],
        seed: int,
        epoch: int,
        params: NoiseParams,
        real_tokens: Tensor | Sequence[int] | None,
        mask_token_id: int,
    ) -> None:
        self.length, self.order, self.key = shape[1], order, {"seed": seed, "epoch": epoch}
        self.params, self.real_tokens, self.mask_token_id = params, real_tokens, mask_token_id
        self.replace_share = params.replace_share

    def tokens(self) -> Tensor:
        import torch

        ids = _replacement_ids(self.real_tokens, self.mask_token_id, self.params.noise_type)
        uniforms = position_uniforms(self.order, self.length, Purpose.REPLACEMENT, **self.key)
        return ids[torch.from_numpy((uniforms * len(ids)).astype(np.int64))]

    def uniforms(self) -> Tensor:
        import torch

        return torch.from_numpy(position_uniforms(self.order, self.length, Purpose.REPLACED, **self.key))


def _independent_mask(
    maskable: NDArray[np.bool_], p: NDArray[np.float64], uniforms: NDArray[np.float64], at_least_one: bool
) -> NDArray[np.bool_]:
    """Bool [B, L]: each maskable position is masked with probability p [B, 1] or [B, L].

    `at_least_one`: an empty mask gets the position with the smallest uniform, which is a uniformly random position.
    """
    candidates = np.where(maskable, uniforms, 1.0)
    masked = candidates < p  # uniforms are below 1, so p = 1 masks all; 1.0 itself is below no p
    if at_least_one and masked.shape[1]:
        empty = np.flatnonzero(~masked.any(axis=1))
        masked[empty, candidates[empty].argmin(axis=1)] = True
    return masked & maskable


def _span_mask(
    maskable: NDArray[np.bool_], p: NDArray[np.float64], start_uniforms: NDArray[np.float64], at_least_one: bool
) -> NDArray[np.bool_]:
    """Bool [B, L]: one run of round(p n) of each row's n maskable positions, p [B], uniform over all starts.

    `at_least_one`: the run has at least one position.
    """
    count = maskable.sum(axis=1)
    span = np.rint(p * count).astype(np.int64)
    if at_least_one:
        span = np.minimum(np.maximum(span, 1), count)
    start = np.floor(start_uniforms * (count - span + 1)).astype(np.int64)
    rank = maskable.cumsum(axis=1) - 1
    return maskable & (rank >= start[:, None]) & (rank < (start + span)[:, None])


def _spans_of_levels(
    maskable: NDArray[np.bool_], p: NDArray[np.float64], starts: NDArray[np.float64], at_least_one: bool
) -> NDArray[np.bool_]:
    """Bool [B, L]: one run of round(p n) in each stretch of n maskable positions with the same p [B, L].

    `starts` [B, L]: uniforms; a stretch uses the one at its first position. `at_least_one`: a row without a masked
    position gets a random one; nothing else has used its uniform then, because no stretch has a run.
    """
    masked = np.zeros_like(maskable)
    for row in range(len(p)):
        columns = np.flatnonzero(maskable[row])
        cuts = np.flatnonzero(np.diff(p[row, columns]) != 0) + 1
        for stretch in np.split(columns, cuts):
            if len(stretch):
                alone = np.ones((1, len(stretch)), bool)
                run = _span_mask(alone, p[row, stretch[:1]], starts[row, stretch[:1]], at_least_one=False)
                masked[row, stretch] = run[0]
        if at_least_one and len(columns) and not masked[row].any():
            masked[row, columns[int(starts[row, columns[0]] * len(columns))]] = True
    return masked


def _replacement_ids(real_tokens: Tensor | Sequence[int] | None, mask_token_id: int, noise_type: str) -> Tensor:
    """The ids [R] that a noise type draws from, validated."""
    import torch

    ids = torch.as_tensor([] if real_tokens is None else real_tokens, dtype=torch.long, device="cpu")
    if not len(ids):
        raise ValueError(f"real_tokens must hold at least one token id for {noise_type=}")
    if (ids == mask_token_id).any():
        raise ValueError(f"real_tokens must not hold the mask token {mask_token_id}")
    return ids
