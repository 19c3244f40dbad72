"""Corruption of token sequences: which positions are masked or replaced, and with which probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3llada.diffusion.keyed_random import Purpose, golden_ratio_levels, position_uniforms, sample_uniforms
from qwen3llada.diffusion.noise_types import NOISE_TYPES
from qwen3llada.diffusion.params import NoiseParams
from qwen3llada.diffusion.schedules import SCHEDULES

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


def by_position(values: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """`values` of each sequence ([B]) or of each position ([B, L]) of a batch of `shape` (B, L), as [B, 1] or [B, L].

    Raises ValueError that calls them `name` if they are neither.
    """
    if tuple(values.shape) == tuple(shape):
        return values
    if tuple(values.shape) != tuple(shape[:1]):
        raise ValueError(f"{name} of shape {tuple(values.shape)} must have shape {tuple(shape[:1])} or {tuple(shape)}")
    return values[:, None]


def noise_levels(indices: Tensor, *, seed: int, epoch: int) -> Tensor:
    """Noise levels t in [0, 1), float64 [B], of the samples at `indices` [B] in the epoch's order; stratified."""
    import torch

    return torch.from_numpy(golden_ratio_levels(_index_array(indices), seed=seed, epoch=epoch))


def mask_probabilities(t: Tensor, params: NoiseParams) -> Tensor:
    """Mask probabilities p, float32, at noise levels `t` of any shape: the values that `add_noise` compares with."""
    import torch

    schedule = SCHEDULES[params.schedule]
    options = {"power": params.power} if params.schedule == "power" else {}
    levels, inverse = t.double().unique(return_inverse=True)  # far fewer than positions, where a block shares one
    # One level at a time: vectorised and scalar code paths differ in the last bit, so p would depend on the batch size.
    p = torch.stack([schedule(level, **options) for level in levels.unbind()])[inverse] if len(levels) else t.double()
    return ((1 - params.eps) * p + params.eps).clamp(params.min_masking_rate, 1).float()


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
    Raises ValueError on shapes that do not fit, negative indices, `real_tokens` missing or holding the mask token, and
    on levels of positions where some sequences are to be masked in one span: its length follows from one p.
    """
    import torch

    if len(indices) != len(tokens):
        raise ValueError(f"indices of {len(indices)} samples must be as many as the rows of tokens, {len(tokens)}")
    order = _index_array(indices)
    maskable = maskable_positions(tokens, valid, prompt_lengths)
    levels = noise_levels(indices, seed=seed, epoch=epoch) if levels is None else levels.cpu()
    p_mask = mask_probabilities(levels, params)
    allowed, p = maskable.cpu().numpy(), by_position(p_mask, tokens.shape, "levels").double().numpy()

    uniforms = position_uniforms(order, tokens.shape[1], Purpose.MASK, seed=seed, epoch=epoch)
    masked = _independent_mask(allowed, p, uniforms, at_least_one)
    if params.mask_contiguous_region_prob > 0:
        if p_mask.dim() > 1:
            raise ValueError("levels of positions [B, L] need mask_contiguous_region_prob=0: a span has one p")
        draws = _SampleDraws(*sample_uniforms(order, seed=seed, epoch=epoch).T)
        is_span = draws.span < params.mask_contiguous_region_prob
        masked = np.where(is_span[:, None], _span_mask(allowed, p[:, 0], draws.span_start, at_least_one), masked)

    chosen = torch.from_numpy(masked).to(tokens.device)

    def draw() -> Tensor:
        ids = _replacement_ids(real_tokens, mask_token_id, params.noise_type)
        uniforms = position_uniforms(order, tokens.shape[1], Purpose.REPLACEMENT, seed=seed, epoch=epoch)
        return ids[torch.from_numpy((uniforms * len(ids)).astype(np.int64))]

    noisy = NOISE_TYPES[params.noise_type].corrupt(tokens, chosen, mask_token_id, draw)
    return Noised(noisy, chosen, p_mask.to(tokens.device))


def _index_array(indices: Tensor) -> NDArray[np.int64]:
    array = indices.cpu().numpy().astype(np.int64)
    if array.size and array.min() < 0:
        raise ValueError(f"indices={array.tolist()} must be 0 or more")
    return array


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


def _replacement_ids(real_tokens: Tensor | Sequence[int] | None, mask_token_id: int, noise_type: str) -> Tensor:
    """The ids [R] that a noise type draws from, checked."""
    import torch

    ids = torch.as_tensor([] if real_tokens is None else real_tokens, dtype=torch.long, device="cpu")
    if not len(ids):
        raise ValueError(f"real_tokens must hold at least one token id for {noise_type=}")
    if (ids == mask_token_id).any():
        raise ValueError(f"real_tokens must not hold the mask token {mask_token_id}")
    return ids
