"""Corruption of token sequences: which positions are masked or replaced, and with which probability."""

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
    """A corrupted batch. p is the same in all of a sequence ([B]), or each position has its own ([B, L])."""

    tokens: Tensor  # [B, L] int64
    masked: Tensor  # [B, L] bool, what was corrupted
    p_mask: Tensor  # [B] or [B, L] float32, the probability with which a position was masked

    @property
    def p_by_position(self) -> Tensor:
        """p broadcastable to [B, L]: [B, 1] or [B, L]."""
        return by_position(self.p_mask, self.tokens.shape, "p_mask")


class _SampleDraws(NamedTuple):
    """The four uniforms of each sample, each [B]: whether and where to cut it, whether and where to mask a span."""

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
    """Corrupt `tokens` [B, L]; what happens to a sample depends on (seed, epoch, its index) alone.

    `indices` [B]: position of each sample in the epoch's order. `levels`: noise levels t of the sequences [B] or of
    their positions [B, L]; None = `noise_levels`. p_mask has their shape. `valid` [B, L] bool: real tokens, None = all.
    `prompt_lengths` [B]: tokens at the start that stay as they are. `real_tokens` [R]: the ids that noise types draw
    from. `at_least_one`: where the draw masks nothing, one maskable position of the sequence is masked all the
    same. Only for losses without the weight 1/p: a forced position would keep the weight, but not the probability p.
    Where positions have levels and a sequence is to be masked in one span, each stretch of one level has a span.
    Raises ValueError on shapes that do not fit, negative indices, and `real_tokens` missing or holding the mask token.
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
    """The other view of a batch: exactly the maskable positions that `noised` left are corrupted, at p2 = 1 - p.

    Fast-dLLM v2 (arXiv 2509.26328), LLaDA2. Arguments as in `add_noise`, which made `noised`.
    """
    import torch

    masked = maskable_positions(tokens, valid, prompt_lengths) & ~noised.masked
    order = index_array(indices)
    drawn = _KeyedDraws(tokens.shape, order, seed, epoch, params, real_tokens, mask_token_id)
    noisy = NOISE_TYPES[params.noise_type].corrupt(tokens, masked, mask_token_id, drawn)
    # Where p is 1 nothing is left, and the weight 1/p2 must only be finite.
    return Noised(noisy, masked, (1 - noised.p_mask).clamp(min=torch.finfo(torch.float32).tiny))


class _KeyedDraws:
    """What noise types may draw (see `noise_types.Draws`), made only when asked for."""

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
    """Bool [B, L]: each maskable position with probability p [B, 1] or [B, L].

    `at_least_one`: an empty mask gets the position with the smallest uniform, which is equally likely to be any.
    """
    candidates = np.where(maskable, uniforms, 1.0)
    masked = candidates < p  # a uniform is below 1, so p = 1 masks all; 1.0 is below no p
    if at_least_one and masked.shape[1]:
        empty = np.flatnonzero(~masked.any(axis=1))
        masked[empty, candidates[empty].argmin(axis=1)] = True
    return masked & maskable


def _span_mask(
    maskable: NDArray[np.bool_], p: NDArray[np.float64], start_uniforms: NDArray[np.float64], at_least_one: bool
) -> NDArray[np.bool_]:
    """Bool [B, L]: of each row's n maskable positions a run of round(p n), p [B], its start uniform among all.

    `at_least_one`: where that is 0, the run is one position.
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
    """Bool [B, L]: a run of round(p n) in each stretch of n maskable positions that share one p [B, L].

    `starts` [B, L]: uniforms, of which a stretch takes that of its first position. `at_least_one`: where a row would
    have no masked position, its first stretch has a run of one.
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
            masked[row, columns[0]] = True
    return masked


def _replacement_ids(real_tokens: Tensor | Sequence[int] | None, mask_token_id: int, noise_type: str) -> Tensor:
    """The ids [R] that a noise type draws from, checked."""
    import torch

    ids = torch.as_tensor([] if real_tokens is None else real_tokens, dtype=torch.long, device="cpu")
    if not len(ids):
        raise ValueError(f"real_tokens must hold at least one token id for {noise_type=}")
    if (ids == mask_token_id).any():
        raise ValueError(f"real_tokens must not hold the mask token {mask_token_id}")
    return ids
