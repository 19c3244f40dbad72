"""Parameters of the corruption."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from qwen3llada.commandline.messages import first_error
from qwen3llada.diffusion.noise_types import NOISE_TYPES
from qwen3llada.diffusion.schedules import SCHEDULES
from qwen3llada.section import Section, one_of, refuse_unused

# Knob -> the other knob and its value without which it has no effect.
NEEDS = {"power": ("schedule", "power"), "replace_share": ("noise_type", "hybrid")}


class NoiseParams(Section):
    """How a sequence is corrupted: p(t) by the schedule, then p <- (1 - eps) p + eps, then the clamp."""

    schedule: Annotated[str, one_of(SCHEDULES)] = Field(
        default="uniform", description=f"Mask probability p(t) at noise level t: {', '.join(SCHEDULES)}"
    )
    power: float = Field(
        default=2.0,
        ge=1e-9,
        le=1000,
        description="Exponent k of the schedule 'power', p = 1-(1-t)^k; 1e-09 to 1,000",
    )
    noise_type: Annotated[str, one_of(NOISE_TYPES)] = Field(
        default="mask",
        description="Corrupted positions become the mask token (mask), or uniformly random tokens of the vocabulary"
        " (random_replace: such a training never shows the mask token, which sampling starts from), or one or the other"
        " (hybrid, see replace_share)",
    )
    replace_share: float = Field(
        default=0.1, ge=0, le=1, description="hybrid: share of corrupted positions that become random tokens; 0 to 1"
    )
    level: Literal["auto", "sequence", "block"] = Field(
        default="auto",
        description="One noise level for a sequence, or one for each block; auto: block under attention policies"
        " block_causal and window, else sequence",
    )
    t_range: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = Field(
        default=(0.0, 1.0), description="The noise level t is drawn from [low, high]; 0 to 1"
    )
    views: int = Field(
        default=1,
        ge=1,
        le=2,
        description="1 or 2; 2: each sample is seen twice in a step, the second time with those positions masked that"
        " the first left, so that every token is predicted once; the loss is the mean of both",
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
    stages: tuple[dict[str, Any], ...] = Field(
        default=(),
        description="Other noise in parts of the run: each {until: share of the optimiser steps, KNOB: VALUE, …} with"
        " any knobs of this section, the last until 1.0; evaluation has the last one's",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.t_range
        if low >= high:
            raise ValueError(f"t_range=[{low}, {high}] must be two rising numbers")
        until = 0.0
        for stage in self.stages:
            end = stage.get("until")
            if isinstance(end, bool) or not isinstance(end, int | float) or not until < end <= 1:
                raise ValueError(f"stages: until={end!r} must be a number above {until:g}, up to 1")
            self._of(stage)
            until = end
        if self.stages and until != 1:
            raise ValueError(f"stages: the last has until={until:g}, must be 1")
        for name, (knob, needed) in NEEDS.items():
            if all(getattr(noise, knob) != needed for noise in self.all()):
                refuse_unused(self, [name], f"{knob}={getattr(self, knob)}")
        return self

    def _of(self, stage: dict[str, Any]) -> "NoiseParams":
        knobs = {name: value for name, value in stage.items() if name != "until"}
        if "stages" in knobs:
            raise ValueError("stages: a stage has no stages")
        tree = self.model_dump(exclude={"stages"}) | knobs
        for name, (knob, needed) in NEEDS.items():
            if name not in knobs and tree[knob] != needed:
                del tree[name]  # the section's value is for other stages
        try:
            return NoiseParams.model_validate(tree)
        except ValidationError as error:
            raise ValueError(f"stages: until={stage['until']}: {first_error(error, NoiseParams)}") from error

    def all(self) -> "list[NoiseParams]":
        """The noise of each stage; without stages, this noise alone."""
        return [self._of(stage) for stage in self.stages] or [self]

    def at(self, share: float) -> "NoiseParams":
        """The noise after `share` (in [0, 1]) of the run's optimiser steps; without stages, this noise."""
        for stage in self.stages:
            if share < stage["until"]:
                return self._of(stage)
        return self._of(self.stages[-1]) if self.stages else self
