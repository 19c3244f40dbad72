"""The knobs of serving."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from qwen3llada.section import Section, one_of
from qwen3llada.serving.formats import FORMATS


class ExportParams(Section):
    """Which model is written in which engines' format."""

    model: Path = Field(Path("out/qwen3llada-sft"), description="Folder of the checkpoint, a whole model")
    format: Annotated[str, one_of(FORMATS)] = Field(
        "sdar", description="sdar: what SGLang, LMDeploy, JetEngine and Diffulex load as SDARForCausalLM"
    )
    dst: Path = Field(Path("out/served"), description="Folder that is written, or replaced")
    dtype: Literal["keep", "bfloat16"] = Field(
        "keep", description="keep: every tensor bit for bit; bfloat16: rounded to it, half the size of float32"
    )
