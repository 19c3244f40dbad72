"""Parameters of the objective: the attention kernel, and attention within documents."""

from typing import Literal, Protocol

from pydantic import Field

from qwen3llada.batches.settings import BatchKnobs
from qwen3llada.modeling.params import AttentionParams


class KernelParams(AttentionParams):
    """Attention policy and kernel in training. The policy is stored with the checkpoint."""

    implementation: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_4"] = Field(
        "auto",
        description="Attention kernel. auto: sdpa for full attention and on CPU, flex_attention for other policies."
        " flash_attention_4: the kernels of that package, on an H100 or H200",
    )


class PretrainKernelParams(KernelParams):
    """The same, and whether attention stays within the documents of a packed sequence."""

    within_documents: bool = Field(
        False,
        description="Attention stops at the end of a document, which EOS marks, so that packed documents do not see"
        " each other; false: it spans the sequence",
    )

    @property
    def keeps_within_documents(self) -> bool:
        return self.within_documents


class LossKnobs(BatchKnobs, Protocol):
    """Knobs of a training section that define the loss. Evaluation uses the same."""

    @property
    def loss_smoothing(self) -> float: ...
    @property
    def attention(self) -> KernelParams: ...
