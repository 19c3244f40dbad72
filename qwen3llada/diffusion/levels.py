"""Noise levels of sequences and blocks, and the mask probabilities computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qwen3llada.diffusion.keyed_random import golden_ratio_levels, spread_over_blocks
from qwen3llada.diffusion.params import NoiseParams
from qwen3llada.diffusion.schedules import SCHEDULES

if TYPE_CHECKING:
    from torch import Tensor

TABLE = 1025  # levels for the inverse of a schedule
LANES = 16  # fills the widest vector registers, so that no value is computed by the scalar remainder loop


def by_position(values: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """`values` of the sequences ([B]) or of the positions ([B, L]) of a batch of `shape` (B, L), as [B, 1] or [B, L].

    Raises ValueError naming `name` for other shapes.
    """
    if tuple(values.shape) == tuple(shape):
        return values
    if tuple(values.shape) != tuple(shape[:1]):
        raise ValueError(f"{name} of shape {tuple(values.shape)} must have shape {tuple(shape[:1])} or {tuple(shape)}")
    return values[:, None]


def noise_levels(
    indices: Tensor, *, seed: int, epoch: int, t_range: tuple[float, float] = (0.0, 1.0), blocks: Tensor | None = None
) -> Tensor:
    """Noise levels t, float64 [B], of the samples at `indices` [B] in the epoch's order, stratified over [low, high).

    `blocks` [B, L]: block number of each position, negative where nothing can be masked. With it each block gets its
    own level and the result is [B, L], with 1 at the negative positions.
    """
    import torch

    order = index_array(indices)
    t = golden_ratio_levels(order, seed=seed, epoch=epoch)
    if blocks is not None:
        numbers = blocks.cpu().numpy()
        by_block = np.ones(numbers.shape)
        for target, row, level, index in zip(by_block, numbers, t, order.tolist(), strict=True):
            maskable = row >= 0
            found, which = np.unique(row[maskable], return_inverse=True)
            if len(found):
                target[maskable] = spread_over_blocks(level, len(found), index, seed=seed, epoch=epoch)[which]
        t = by_block
    low, high = t_range
    if (low, high) != (0.0, 1.0):
        t = low + (high - low) * t
    return torch.from_numpy(t)


def mask_probabilities(t: Tensor, params: NoiseParams) -> Tensor:
    """Mask probabilities p, float32, at noise levels `t` of any shape: the values that `add_noise` compares with.

    p of a level does not depend on the other values in `t`. Vector and scalar code differ in the last bit, so each
    level is computed in a vector of its own, in parts small enough that torch does not split them between threads.
    """
    import torch

    schedule = SCHEDULES[params.schedule]
    options = {"power": params.power} if params.schedule == "power" else {}
    levels, inverse = t.double().unique(return_inverse=True)  # far fewer than positions: a block shares one
    parts = [
        schedule(part[:, None].expand(-1, LANES).contiguous(), **options)[:, 0]
        for part in levels.split(1024)
        if len(part)
    ]
    p = torch.cat(parts)[inverse] if parts else t.double()
    return ((1 - params.eps) * p + params.eps).clamp(params.min_masking_rate, 1).float()


def levels_of(p_mask: Tensor, params: NoiseParams) -> Tensor:
    """Noise levels t [like p_mask], float32, where `mask_probabilities` gives about `p_mask`: its inverse by a table.

    A probability below that of level 0 gets level 0, and one above that of level 1 gets level 1.
    """
    import torch

    t = torch.linspace(0, 1, TABLE, dtype=torch.float64)
    p = mask_probabilities(t, params).numpy()
    return torch.from_numpy(np.interp(p_mask.cpu().numpy(), p, t.numpy())).float()


def index_array(indices: Tensor) -> NDArray[np.int64]:
    array = indices.cpu().numpy().astype(np.int64)
    if array.size and array.min() < 0:
        raise ValueError(f"indices={array.tolist()} must be 0 or more")
    return array
