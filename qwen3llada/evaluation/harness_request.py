"""What one call of lm-evaluation-harness is asked."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from qwen3llada.section import MAX_TOKENS
from qwen3llada.tracked import Request


class HarnessRequest(Request):
    """What one call of lm-evaluation-harness is asked."""

    tasks: list[str] = Field(["world_choice", "world_answer", "word_problems"], description="Names of tasks")
    model: Path | None = Field(None, description="Folder of the checkpoint; null: the fine-tuned one, sft.dst")
    include_path: Path | None = Field(None, description="Folder with more task files (YAML)")
    num_fewshot: int | None = Field(
        None, ge=0, le=1000, description="Solved examples before each question, 0 to 1,000; null: as the task says"
    )
    limit: int | None = Field(
        None, ge=1, le=1_000_000_000, description="Questions of each task, 1 to 1e+09, the first ones; null: all"
    )
    apply_chat_template: bool = Field(False, description="Ask in the form in which the model was taught")
    rounds: int = Field(32, ge=1, le=10_000, description="Masks drawn for each likelihood, 1 to 10,000")
    steps: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Forward passes for an answer, 1 to 1,048,576; null: one for each token"
    )
    batch_size: int = Field(16, ge=1, le=65536, description="Answers decoded together, 1 to 65,536")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="What the model computes in")
    out: Path = Field(Path("reports/harness"), description="Folder for results and samples, in lm-eval's format")

    def files(self) -> dict[str, Path] | None:
        """The folder of the results."""
        return {"--out": self.out}

    def reads(self) -> list[str]:
        """The model, and the conversations that the tasks' data are made of."""
        return ["data/validated", str(self.model or "${sft.dst}")]
