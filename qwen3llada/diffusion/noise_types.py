"""What corrupted tokens become. To add a noise type, write a function and enter it in `NOISE_TYPES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Draws(Protocol):
    """Keyed random draws available to a noise type."""

    replace_share: float  # share of corrupted positions that `hybrid` replaces

    def tokens(self) -> Tensor:
        """A uniformly random id of real text per position, [B, L] int64."""

    def uniforms(self) -> Tensor:
        """A uniform number in [0, 1) per position, [B, L] float64."""


@dataclass(frozen=True, kw_only=True)
class NoiseType:
    """One kind of noise.

    `corrupt(tokens [B, L], masked [B, L] bool, mask_token_id, draws)` returns the noisy tokens [B, L].
    `draws`: whether it draws random tokens. `shows_mask`: whether the model sees the mask token in training; sampling
    starts from mask tokens.
    """

    corrupt: Callable[[Tensor, Tensor, int, Draws], Tensor]
    draws: bool
    shows_mask: bool


def mask(tokens: Tensor, masked: Tensor, mask_token_id: int, draws: Draws) -> Tensor:
    """The mask token at every corrupted position (LLaDA, arXiv 2502.09992)."""
    return tokens.masked_fill(masked, mask_token_id)


def random_replace(tokens: Tensor, masked: Tensor, mask_token_id: int, draws: Draws) -> Tensor:
    """A random token of real text at every corrupted position: uniform noise (D3PM, arXiv 2107.03006)."""
    return draws.tokens().to(tokens).where(masked, tokens)


def hybrid(tokens: Tensor, masked: Tensor, mask_token_id: int, draws: Draws) -> Tensor:
    """A random token with probability `replace_share`, else the mask token (GIDD, arXiv 2503.04482; LLaDA2.1).

    A model trained on wrong tokens can tell a sampler which committed tokens to revise.
    """
    replaced = masked & (draws.uniforms().to(tokens.device) < draws.replace_share)
    return draws.tokens().to(tokens).where(replaced, tokens.masked_fill(masked, mask_token_id))


NOISE_TYPES: dict[str, NoiseType] = {
    "mask": NoiseType(corrupt=mask, draws=False, shows_mask=True),
    "random_replace": NoiseType(corrupt=random_replace, draws=True, shows_mask=False),
    "hybrid": NoiseType(corrupt=hybrid, draws=True, shows_mask=True),
}
