"""The knobs of the report."""

from pydantic import Field

from qwen3llada.section import Section


class ReportParams(Section):
    """What the report shows."""

    samples: int = Field(default=24, ge=0, le=10_000, description="Held-out answers shown, 0 to 10,000")
    played: int = Field(default=4, ge=0, le=1000, description="Answers whose denoising can be played, 0 to 1,000")
