"""What corrupted tokens become. To add a kind of noise, write a function and enter it in `NOISE_TYPES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Draws(Protocol):
    """What a noise type may draw; keyed like all else."""

    replace_share: float  # of corrupted positions that `hybrid` replaces

    def tokens(self) -> Tensor:
        """A random id of real text for each position, [B, L] int64, uniform."""

    def uniforms(self) -> Tensor:
        """A number in [0, 1) for each position, [B, L] float64."""


@dataclass(frozen=True, kw_only=True)
class NoiseType:
    """One kind of noise.

    `corrupt(tokens [B, L], masked [B, L] bool, mask_token_id, draws)` gives the noisy tokens [B, L].
    `draws`: whether it draws random tokens. `shows_mask`: whether the model meets the mask token, which all sampling
    starts from.
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

    A model that saw wrong tokens can tell a sampler which of the committed ones to revise.
    """
    replaced = masked & (draws.uniforms().to(tokens.device) < draws.replace_share)
    return draws.tokens().to(tokens).where(replaced, tokens.masked_fill(masked, mask_token_id))


NOISE_TYPES: dict[str, NoiseType] = {
    "mask": NoiseType(corrupt=mask, draws=False, shows_mask=True),
    "random_replace": NoiseType(corrupt=random_replace, draws=True, shows_mask=False),
    "hybrid": NoiseType(corrupt=hybrid, draws=True, shows_mask=True),
}
