"""Parameters of training: one section for pretraining, one for SFT. They differ in defaults and answer padding."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from qwen3llada.batches.settings import AnswerMethod, AnswerPadding
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.diffusion.params import NoiseParams
from qwen3llada.objective.params import PretrainKernelParams
from qwen3llada.section import one_of
from qwen3llada.training.run_params import AdapterParams, OptimParams, RunParams

__all__ = ["AdapterParams", "OptimParams", "PretrainParams", "SftParams", "TrainParams"]


class TrainParams(RunParams):
    """Parameters that pretraining and SFT share."""

    loss_impl: Annotated[str, one_of(LOSSES)] = Field("guidelines", description=f"Training loss: {', '.join(LOSSES)}")
    loss_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Label smoothing of soft_ce, 0 to below 1; the other losses have none"
    )
    noise: NoiseParams = Field(NoiseParams.model_validate({}), description="How sequences are corrupted")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=65536, description="Forward passes in one optimiser step, 1 to 65,536"
    )
    bucket: int = Field(
        16,
        ge=1,
        le=1_000_000,
        description="Samples of similar length come in groups of this many, up to 1,000,000, which saves padding;"
        " 1: any order",
    )
    num_workers: int = Field(
        0, ge=0, le=256, description="Processes that prepare batches, up to 256; 0: the training process does"
    )
    do_eval_loss: bool = Field(True, description="Measure the loss on data/heldout while training")
    eval_samples: int = Field(256, ge=0, le=1_000_000_000, description="Held-out samples for them, up to 1e+09; 0: all")

    @property
    def trained_noise_type(self) -> str:
        return self.noise.at(1.0).noise_type

    @property
    def copies(self) -> int:
        return self.noise.views + self.attention.causal

    @property
    def accumulates(self) -> bool:
        return self.gradient_accumulation_steps > 1

    def smaller_micro_batch(self, most: int) -> str:
        samples = self.micro_batch_size * self.gradient_accumulation_steps
        rows = max(rows for rows in range(1, most + 1) if samples % rows == 0)
        return f"{super().smaller_micro_batch(rows)} with gradient_accumulation_steps={samples // rows}"

    @property
    def answer_method(self) -> AnswerMethod:
        """How answers are learnt. Text has none."""
        return "random"

    @property
    def padding_of_answers(self) -> AnswerPadding:
        """How far answers are extended with EOS. Text has no answers, so not at all."""
        return "none"


class PretrainParams(TrainParams):
    """Pretraining on text."""

    attention: PretrainKernelParams = Field(PretrainKernelParams.model_validate({}), description="Who sees whom")

    @property
    def phase(self) -> str:
        return "pretrain"


class SftParams(TrainParams):
    """Supervised fine-tuning on prompts and answers."""

    model: Path = Field(Path("out/qwen3llada-base"), description="Folder of the model to start from")
    data: Path = Field(Path("data/tokenized/sft"), description="Tokenized data: a folder with train/ and heldout/")
    dst: Path = Field(Path("out/qwen3llada-sft"), description="Folder for the final model, Hugging Face format")
    output_dir: Path = Field(
        Path("out/sft"), description="Working folder; checkpoints go to its checkpoints/RUN/step-N"
    )
    reports: Path = Field(Path("reports/sft"), description="Folder for curves, metrics and the summary")
    answer_padding: AnswerPadding = Field(
        "block",
        description="How far an answer goes on with EOS tokens that belong to it: not at all, to the next multiple of"
        " the block length, or to the longest sample of the step; never beyond max_length, where the last block is cut",
    )

    method: AnswerMethod = Field(
        "random",
        description="How answers are learnt: under random masks; semi_ar: one random block, after what comes before it"
        " and without what comes after it; trace: in the order of given trajectories, which are the training data then",
    )
    trajectories: Path | None = Field(
        None, description="trace: rollouts of post-training, a file or a folder of files (out/rl/rollouts); else null"
    )
    least_reward: float | None = Field(
        None, ge=-1e6, le=1e6, description="trace: leave out rollouts below this, -1,000,000 to 1,000,000; null: none"
    )

    @property
    def phase(self) -> str:
        return "sft"

    @property
    def padding_of_answers(self) -> AnswerPadding:
        return self.answer_padding

    @property
    def answer_method(self) -> AnswerMethod:
        return self.method

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        traced = self.method == "trace"
        if traced != (self.trajectories is not None):
            given = self.trajectories and str(self.trajectories)
            raise ValueError(f"trajectories={given} must be {'given' if traced else 'null'} with method={self.method}")
        if not traced and self.least_reward is not None:
            raise ValueError(f"least_reward={self.least_reward} must be null with method={self.method}")
        if traced and not LOSSES[self.loss_impl].weighs_by_inverse_p:
            raise ValueError(f"loss_impl={self.loss_impl} does not go with method=trace, whose weight is 1/p")
        if traced and any(noise.views == 2 for noise in self.noise.all()):
            raise ValueError("noise.views=2 does not go with method=trace: a trajectory has one order")
        return self
