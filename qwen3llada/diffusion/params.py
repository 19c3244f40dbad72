"""The knobs of the corruption."""

from typing import Annotated

from pydantic import Field

from qwen3llada.diffusion.noise_types import NOISE_TYPES
from qwen3llada.diffusion.schedules import SCHEDULES
from qwen3llada.section import Section, one_of


class NoiseParams(Section):
    """How a sequence is corrupted. The formulas: p(t) of the schedule, then p <- (1 - eps) p + eps, then the clamp."""

    schedule: Annotated[str, one_of(SCHEDULES)] = Field(
        default="uniform", description=f"Mask probability p(t) at noise level t: {', '.join(SCHEDULES)}"
    )
    power: float = Field(
        default=2.0,
        ge=1e-9,
        le=1000,
        description="Exponent k of the schedule 'power', p = 1-(1-t)^k; others ignore it; 1e-09 to 1,000",
    )
    noise_type: Annotated[str, one_of(NOISE_TYPES)] = Field(
        default="mask",
        description="Corrupted positions become the mask token (mask), or uniformly random tokens of the vocabulary"
        " (random_replace: such a training never shows the mask token, which sampling starts from)",
    )
    eps: float = Field(
        default=1e-3, ge=1e-9, le=1, description="Smallest p of every schedule: p <- (1-eps)p + eps; 1e-09 to 1"
    )
    min_masking_rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="The probability p is raised to at least this before the mask is drawn; 0 to 1",
    )
    mask_contiguous_region_prob: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of sequences whose mask is one contiguous span of round(p*n) positions; 0 to 1",
    )
    reweight_cap: float | None = Field(
        default=None,
        ge=1e-3,
        le=1e9,
        description="Upper bound of the loss weight 1/p, 0.001 to 1e+09; null: none. The mask does not change",
    )
    random_length_prob: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of pretraining sequences cut to a uniformly random length; 0 to 1",
    )
