"""The rules that conversations are held to, and how strictly: parameters of the validation."""

from typing import Literal

from pydantic import Field

from qwen3llada.section import Section


class Rule(Section):
    """How strictly one rule is applied."""

    severity: Literal["error", "warning", "off"] = Field(
        "error",
        description="error = a record that breaks it is invalid; warning = it is only reported; off = not checked",
    )
    mostly: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the records that must keep it; above that share, those that break it are let through",
    )
