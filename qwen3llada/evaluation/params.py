"""The knobs of the held-out loss and of the likelihood bounds."""

from typing import Annotated, Any

from pydantic import Field, field_validator

from qwen3llada.commandline import validated
from qwen3llada.diffusion.params import NoiseParams
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.section import MAX_TOKENS, Section


class HeldOutNoiseParams(NoiseParams):
    """Noise that nothing is trained on. Samples are not cut by themselves."""

    random_length_prob: float = Field(
        default=0.0, ge=0, le=1, description="Share of texts cut to a uniformly random length; 0 to 1"
    )


class EvalLossParams(Section):
    """How the loss on held-out data is measured. The same for all variants of a sweep."""

    noise: HeldOutNoiseParams = Field(
        default_factory=lambda: HeldOutNoiseParams.model_validate({}),
        description="How held-out samples are corrupted, whatever the noise of training was",
    )
    micro_batch_size: int = Field(16, ge=1, le=65536, description="Sequences in one forward pass, 1 to 65,536")
    samples: int = Field(
        0, ge=0, le=1_000_000_000, description="Held-out samples, up to 1e+09, at even distances; 0: all"
    )
    rounds: int = Field(
        4, ge=1, le=10_000, description="Passes over them, each with other noise, always the same; 1 to 10,000"
    )
    bf16: bool = Field(
        False,
        description="Compute in bfloat16 (losses stay in float32); false: in float32, whatever the checkpoint has",
    )


class EvaluateParams(Section):
    """How likelihood bounds, and quality against speed, are measured. The same for all variants of a sweep."""

    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of its masks and of its sampling, 0 to below 2^63; apart from all training"
    )
    samples: int = Field(
        200,
        ge=0,
        le=1_000_000_000,
        description="Held-out texts, and held-out answers, up to 1e+09, at even distances; 0: all",
    )
    rounds: int = Field(8, ge=1, le=10_000, description="Masks drawn for each of them, 1 to 10,000")
    batch_tokens: int = Field(
        16384, ge=1, le=1_000_000_000, description="Tokens of a forward pass, 1 to 1e+09; changes no number"
    )
    bf16: bool = Field(False, description="Compute in bfloat16 (cross-entropies in float32); false: in float32")
    autoregressive: bool = Field(
        True, description="Also the likelihood under the Qwen3 checkpoint that conversion started from"
    )
    prompts: int = Field(
        30,
        ge=0,
        le=1_000_000_000,
        description="Held-out prompts answered at each setting of quality against speed, up to 1e+09; 0: no curve",
    )
    confidence_thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.5, 0.7, 0.9, 0.95), description="Settings with unmask threshold, each 0 to 1"
    )
    tokens_per_step: tuple[Annotated[int, Field(ge=1, le=MAX_TOKENS)], ...] = Field(
        (1, 2, 4, 8),
        description="Settings with unmask fixed: tokens that a step commits, each 1 to 1,048,576 and no more than a"
        " block; sample.steps is then sample.gen_length divided by it, at least one for each block",
    )
    settings: tuple[dict[str, Any], ...] = Field(
        (
            {"unmask": "factor", "factor": 1.0},
            {"unmask": "entropy_bound", "entropy_bound": 0.1},
        ),
        description="Further settings, each an object of the sampler's knobs that differ from the section sample",
    )
    answer_rounds: int = Field(
        8, ge=1, le=10_000, description="Masks drawn for the likelihood of each such answer, 1 to 10,000"
    )

    @field_validator("settings")
    @classmethod
    def _are_knobs(cls, settings: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for number, knobs in enumerate(settings):
            validated(DecodeParams, knobs, f"settings[{number}]")
        return settings
