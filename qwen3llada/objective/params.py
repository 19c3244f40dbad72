"""The knobs of the objective: which attention kernel computes it, and where attention ends."""

from typing import Literal, Protocol

from pydantic import Field

from qwen3llada.batches.settings import BatchKnobs
from qwen3llada.modeling.attention import AttentionParams


class KernelParams(AttentionParams):
    """Who sees whom while training, and by which kernel. The former is stored with the checkpoint."""

    implementation: Literal["auto", "eager", "sdpa", "flex_attention"] = Field(
        "auto",
        description="Attention kernel. auto: sdpa for full attention and on CPU, flex_attention for other policies",
    )

    @property
    def keeps_within_documents(self) -> bool:
        """Whether attention stops at the end of a document. Not here: prompts and answers are one document each."""
        return False


class PretrainKernelParams(KernelParams):
    """The same, and where documents lie one after the other in a sequence."""

    within_documents: bool = Field(
        False,
        description="Attention stops at the end of a document, which EOS marks, so that packed documents do not see"
        " each other; false: it spans the sequence",
    )

    @property
    def keeps_within_documents(self) -> bool:
        return self.within_documents


class LossKnobs(BatchKnobs, Protocol):
    """The knobs of a training section that decide what a loss is; evaluation takes them over."""

    @property
    def loss_smoothing(self) -> float: ...
    @property
    def attention(self) -> KernelParams: ...
