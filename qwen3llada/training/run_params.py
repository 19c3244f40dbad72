"""Parameters that every kind of training shares: pretraining, SFT and post-training on rewards."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from qwen3llada.objective.params import KernelParams
from qwen3llada.section import MAX_TOKENS, Section, one_of, refuse_unused
from qwen3llada.training.start.optimizers import FALL_BACK, OPTIMIZERS
from qwen3llada.training.watch.trackers import TelemetryParams

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimParams(Section):
    """Optimiser and learning-rate schedule."""

    name: Annotated[str, one_of(OPTIMIZERS)] = Field(
        "adamw",
        description=f"Optimiser: {', '.join(OPTIMIZERS)}. The 8-bit ones are bitsandbytes', on a GPU; without one"
        f" {FALL_BACK} runs instead, which is logged and recorded in the summary. muon: Muon for the matrices of the"
        " layers, AdamW for all else. Under FSDP2 only adamw is allowed",
    )
    lr: float = Field(1e-4, ge=1e-12, le=10, description="Peak learning rate, 1e-12 to 10")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="Decay of the two moment averages, each 0 to below 1")
    eps: float = Field(
        1e-8,
        ge=1e-16,
        le=1,
        description="Added to the root of the second moment, 1e-16 to 1; refused under lion8bit, which has none",
    )
    weight_decay: float = Field(
        0.1, ge=0, le=10, description="Decoupled weight decay, 0 to 10; never applied to norms, biases and embeddings"
    )
    scheduler: Literal["linear", "cosine", "constant_with_warmup", "warmup_stable_decay"] = Field(
        "cosine",
        description="Learning rate after warm-up: falling to 0 (linear, cosine), constant, or constant and then"
        " falling to 0 over decay_ratio",
    )
    warmup_ratio: float = Field(0.02, ge=0, le=1, description="Share of the steps with rising learning rate, 0 to 1")
    decay_ratio: float = Field(
        0.2, ge=0, le=1, description="warmup_stable_decay: share of the steps with falling rate at the end, 0 to 1"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.scheduler == "warmup_stable_decay" and self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError(
                f"warmup_ratio={self.warmup_ratio} + decay_ratio={self.decay_ratio} must not exceed 1"
                " under scheduler=warmup_stable_decay"
            )
        refuse_unused(self, OPTIMIZERS[self.name].unused, f"name={self.name}")
        if self.scheduler != "warmup_stable_decay":
            refuse_unused(self, ["decay_ratio"], f"scheduler={self.scheduler}")
        return self


class AdapterParams(Section):
    """Training of a few added weights instead of all (peft)."""

    method: Literal["none", "lora", "qlora"] = Field(
        "none", description="none: all weights are trained; lora: low-rank adapters; qlora: the same over 4-bit weights"
    )
    rank: int = Field(16, ge=1, le=4096, description="Rank of the adapters, 1 to 4,096")
    alpha: int = Field(32, ge=1, le=65536, description="Adapters are scaled by alpha/rank; 1 to 65,536")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapters, 0 to below 1")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Linear layers that get an adapter, by the end of their name",
    )
    merge: bool = Field(
        True, description="Add the adapters to the base weights in the final model; false: dst holds the adapters alone"
    )

    @model_validator(mode="after")
    def _has_adapters(self) -> Self:
        if self.method == "none":
            refuse_unused(self, [name for name in type(self).model_fields if name != "method"], "method=none")
        return self


class RunParams(Section):
    """Parameters of a run that do not depend on what is learnt."""

    model: Path = Field(Path("out/qwen3llada-converted"), description="Folder of the model to start from")
    data: Path = Field(Path("data/tokenized/pretrain"), description="Tokenized data: a folder with train/ and heldout/")
    dst: Path = Field(Path("out/qwen3llada-base"), description="Folder for the final model, Hugging Face format")
    output_dir: Path = Field(
        Path("out/pretrain"), description="Working folder; checkpoints go to its checkpoints/RUN/step-N"
    )
    reports: Path = Field(Path("reports/pretrain"), description="Folder for curves, metrics and the summary")
    attention: KernelParams = Field(KernelParams.model_validate({}), description="Who sees whom")
    optim: OptimParams = Field(OptimParams.model_validate({}), description="Optimiser and learning rate")
    adapter: AdapterParams = Field(AdapterParams.model_validate({}), description="LoRA and QLoRA")
    epochs: int = Field(
        1, ge=1, le=100_000, description="Passes over the data, 1 to 100,000; without effect if max_steps is above 0"
    )
    max_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Optimiser steps, up to 100,000,000, over as many epochs as they take; 0: epochs decide",
    )
    micro_batch_size: int = Field(
        8, ge=1, le=65536, description="Sequences in one forward pass of one process, 1 to 65,536"
    )
    max_length: int = Field(
        1024,
        ge=2,
        le=MAX_TOKENS,
        description="Longest sequence in tokens, 2 to 1,048,576 and no more than the model's max_position_embeddings;"
        " data with a longer one are refused",
    )
    pad_to_multiple_of: int = Field(
        8,
        ge=1,
        le=65536,
        description="Batches are padded to a multiple of this length, 1 to 65,536; fewer shapes compile faster",
    )
    max_grad_norm: float = Field(
        1.0, ge=0, le=1e6, description="Gradients are scaled down to this norm, 1e-06 to 1,000,000; 0: never"
    )
    bf16: bool = Field(False, description="Compute in bfloat16 (losses stay in float32)")
    fp16: bool = Field(False, description="Compute in float16 with loss scaling; needs a GPU")
    param_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Stored parameters and optimiser moments; bfloat16 halves memory and rounds small updates",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: far less memory, about a third more work"
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="torch.compile of the decoder layers; auto: on a GPU"
    )
    cuda_graphs: Literal["auto", "never"] = Field(
        "auto",
        description="Launch all of a compiled layer at once, which helps small batches most; auto: on a GPU, for shapes"
        " that come often, unless there are adapters, gradient checkpointing or FSDP",
    )
    deterministic: bool = Field(
        True,
        description="Same bits from the same run on a GPU too, with slower kernels, and from a resumed one where"
        " compile is never; a CPU always gives them",
    )
    save_steps: int = Field(
        500,
        ge=0,
        le=100_000_000,
        description="Steps between checkpoints, up to 100,000,000, beside those of the lowest held-out loss; 0: none"
        " but when stopped",
    )
    save_total_limit: int = Field(
        2, ge=1, le=100_000, description="Newest checkpoints kept, beside the best; 1 to 100,000"
    )
    resume_from: str = Field(
        "latest",
        description="'': start anew; latest: go on from the newest checkpoint of the same parameters, data and code;"
        " an error if an unfinished run in output_dir differs; or the folder of a checkpoint to go on from",
    )
    eval_every_steps: int = Field(
        500, ge=1, le=100_000_000, description="Steps between these measurements, 1 to 100,000,000"
    )
    logging_steps: int = Field(
        10, ge=1, le=1_000_000, description="Steps between two points of the curves, 1 to 1,000,000"
    )
    peak_tflops: float = Field(
        0.0,
        ge=0,
        le=100_000,
        description="The device's peak for FLOP utilisation, in TFLOP/s, up to 100,000; 0: from a table of known GPUs",
    )
    telemetry: TelemetryParams = Field(TelemetryParams.model_validate({}), description="Where else the curves go")

    @property
    def trained_noise_type(self) -> str | None:
        """Noise type that the model learns to undo, stored in its config; None: what is stored there stays."""
        return None

    @property
    def phase(self) -> str:
        """The section's name in params.yaml, which is also the stage's."""
        raise NotImplementedError

    @property
    def copies(self) -> int:
        """Copies of each sequence in a forward pass."""
        return 1 + self.attention.causal  # causal policies add a clean copy

    @property
    def models_beside(self) -> int:
        """Whole models on each device beside the trained one."""
        return 0

    @property
    def accumulates(self) -> bool:
        """Whether gradients of several micro-batches are added up in a step."""
        return True

    def smaller_micro_batch(self, most: int) -> str:
        """Knobs for a micro-batch of at most `most` rows (1 or more) that change nothing else."""
        return f"micro_batch_size={most}"

    @field_validator("max_grad_norm")
    @classmethod
    def _clips_or_not(cls, value: float) -> float:
        if 0 < value < 1e-6:
            raise ValueError(f"max_grad_norm={value} must be 0 (never) or 1e-06 to 1,000,000")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bf16 and self.fp16:
            raise ValueError("bf16=true and fp16=true exclude each other; choose one")
        if self.param_dtype == "bfloat16" and not self.bf16:
            raise ValueError(f"param_dtype=bfloat16 needs bf16=true, given bf16={self.bf16}, fp16={self.fp16}")
        if self.adapter.method == "qlora" and not (self.bf16 or self.fp16):
            raise ValueError(
                "adapter.method=qlora needs bf16=true or fp16=true: 4-bit weights are computed with in 16 bits"
            )
        if self.adapter.method != "none":  # adapters are matrices, so Muon leaves AdamW nothing to train
            unused = OPTIMIZERS[self.optim.name].unused_for_matrices
            under = f"optim.name={self.optim.name} with adapter.method={self.adapter.method}"
            refuse_unused(self.optim, unused, under)
        return self
