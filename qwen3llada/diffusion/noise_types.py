"""What corrupted tokens become. To add a kind of noise, write a function and enter it in `NOISE_TYPES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NoiseType:
    """One kind of noise.

    `corrupt(tokens [B, L], masked [B, L] bool, mask_token_id, draw)` gives the noisy tokens [B, L]; `draw()` gives a
    random id of real text for each position, [B, L], uniform, keyed like all else. `draws`: whether it needs that.
    `shows_mask`: whether the model meets the mask token, which all sampling starts from.
    """

    corrupt: Callable[[Tensor, Tensor, int, Callable[[], Tensor]], Tensor]
    draws: bool
    shows_mask: bool


def mask(tokens: Tensor, masked: Tensor, mask_token_id: int, draw: Callable[[], Tensor]) -> Tensor:
    """The mask token at every corrupted position (LLaDA, arXiv 2502.09992)."""
    return tokens.masked_fill(masked, mask_token_id)


def random_replace(tokens: Tensor, masked: Tensor, mask_token_id: int, draw: Callable[[], Tensor]) -> Tensor:
    """A random token of real text at every corrupted position: uniform noise (D3PM, arXiv 2107.03006)."""
    return draw().to(tokens).where(masked, tokens)


NOISE_TYPES: dict[str, NoiseType] = {
    "mask": NoiseType(corrupt=mask, draws=False, shows_mask=True),
    "random_replace": NoiseType(corrupt=random_replace, draws=True, shows_mask=False),
}
