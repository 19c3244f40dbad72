"""What one call of `analyze` is asked."""

from pathlib import Path

from pydantic import Field, model_validator

from qwen3llada.errors import InputError
from qwen3llada.tracked import Request


class AnalyzeRequest(Request):
    """Nothing given: the conversion, for the reports."""

    model: Path | None = Field(None, description="Folder of the checkpoint that was exported")
    exported: Path | None = Field(None, description="Folder of its export: compare these two, and write no report")

    @model_validator(mode="after")
    def _agree(self) -> "AnalyzeRequest":
        if (self.model is None) != (self.exported is None):
            raise InputError("model and exported must be given together")
        return self

    def files(self) -> dict[str, Path] | None:
        """No output, where an export is compared; None: the report."""
        return None if self.exported is None else {}

    def reads(self) -> list[str] | None:
        """The two folders, where an export is compared; None: what the conversion's comparison reads."""
        return None if self.exported is None else [str(self.model), str(self.exported)]
