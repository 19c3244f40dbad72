"""The gate before fine-tuning: Great Expectations over the conversations."""

from typing import Literal

from pydantic import Field

from qwen3llada.section import Section


class ValidateParams(Section):
    """What happens to conversations that break a rule."""

    on_invalid: Literal["fail", "quarantine"] = Field(
        "fail",
        description="fail = an invalid record stops the pipeline; quarantine = go on with the valid ones and write the "
        "others to reports/quarantine.jsonl",
    )
    max_invalid_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of invalid records above which quarantine fails too (0 = none is tolerated)",
    )
