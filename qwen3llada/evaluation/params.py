"""The knobs of the held-out loss."""

from pydantic import Field

from qwen3llada.section import Section


class EvalLossParams(Section):
    """How the loss on held-out data is measured."""

    micro_batch_size: int = Field(16, ge=1, le=65536, description="Sequences in one forward pass, 1 to 65,536")
    samples: int = Field(
        0, ge=0, le=1_000_000_000, description="Held-out samples, up to 1e+09, at even distances; 0: all"
    )
    rounds: int = Field(
        4, ge=1, le=10_000, description="Passes over them, each with other noise, always the same; 1 to 10,000"
    )
    bf16: bool = Field(
        False,
        description="Compute in bfloat16 (losses stay in float32); false: in float32, whatever the checkpoint has",
    )
