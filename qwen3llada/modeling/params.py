"""Parameters of attention: the policy and the block length."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, GetCoreSchemaHandler, ValidationInfo, model_validator
from pydantic_core import core_schema

from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import ALTERNATE, POLICIES, is_causal, layer_kinds, plan
from qwen3llada.section import MAX_TOKENS, OneOf, Section

MAX_WINDOW = 65536


class PolicyOrPlan(OneOf):
    """The knob's value is a name in `POLICIES`, or a plan for the layers."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        checked = super().__get_pydantic_core_schema__(source, handler)
        return core_schema.no_info_before_validator_function(self._joined, checked)

    @staticmethod
    def _joined(value: Any) -> Any:
        """Rejoin a flag's value that was split at commas: a single name, or `alternate:A` and `B`."""
        parts = list(value) if isinstance(value, list | tuple) else []
        whole = len(parts) == 1 or (parts and isinstance(parts[0], str) and parts[0].startswith(ALTERNATE))
        return ",".join(map(str, parts)) if whole else value

    def _check(self, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and not value.startswith(ALTERNATE):
            return super()._check(value, info)
        try:
            plan(value)
        except InputError as error:
            raise ValueError(str(error)) from error
        return value


class BlockStage(Section):
    """The block length in one part of the run."""

    until: float = Field(gt=0, le=1, description="Share of the run's optimiser steps at which this ends, above 0 to 1")
    block_length: int = Field(ge=1, le=MAX_TOKENS, description="tokens of a block, 1 to 1,048,576")


class AttentionParams(Section):
    """Attention policy in training. Stored with the checkpoint, and the sampler's default."""

    policy: Annotated[str | tuple[str, ...], PolicyOrPlan(POLICIES, ())] = Field(
        "full",
        description="full: every position sees every other; block: the prompt sees itself, an answer block sees the"
        " prompt and itself; block_causal: a block, counted from position 0, sees itself and all earlier ones; window:"
        " the same, but no more than window_blocks back; alternate:A,B or a list with one name a layer: a policy for"
        " each layer, out of full and block, or out of block_causal and window",
    )
    block_length: int = Field(
        32, ge=1, le=MAX_TOKENS, description="tokens of a block, 1 to 1,048,576 and no more than the model takes"
    )
    window_blocks: int = Field(
        4, ge=0, le=MAX_WINDOW, description="blocks that policy window sees before its own, 0 to 65,536"
    )
    block_schedule: tuple[BlockStage, ...] = Field(
        (),
        description="Other block lengths in parts of the run: each {until: share of the optimiser steps, block_length:"
        " tokens}, the last until 1.0; the model is stored with the last one, and evaluated with it",
    )

    @model_validator(mode="after")
    def _schedule_rises(self) -> Self:
        ends = [stage.until for stage in self.block_schedule]
        if ends and (sorted(set(ends)) != ends or ends[-1] != 1):
            raise ValueError(f"block_schedule: until={ends} must rise, and end with 1")
        return self

    def block_length_at(self, share: float) -> int:
        """Tokens per block after `share` (in [0, 1]) of the run's optimiser steps."""
        for stage in self.block_schedule:
            if share < stage.until:
                return stage.block_length
        return self.last_block_length

    @property
    def last_block_length(self) -> int:
        """Block length of the finished model."""
        return self.block_schedule[-1].block_length if self.block_schedule else self.block_length

    @property
    def block_lengths(self) -> dict[str, int]:
        """Every block length of a run, by its knob."""
        parts = enumerate(self.block_schedule)
        later = {f"attention.block_schedule[{number}].block_length": part.block_length for number, part in parts}
        return {"attention.block_length": self.block_length, **later}

    @property
    def causal(self) -> bool:
        """Whether blocks are counted from position 0 and trained against clean earlier ones (see `Policy`)."""
        return is_causal(self.policy)

    @property
    def keeps_within_documents(self) -> bool:
        """Whether attention ends at the end of a document."""
        return False


def store_attention(config: Any, attention: AttentionParams) -> None:
    """Store the attention of training in a model's config. Raises InputError if the plan does not fit its layers."""
    plan(attention.policy, config.num_hidden_layers)
    policy = attention.policy
    config.attention_policy = policy if isinstance(policy, str) else list(policy)
    config.block_length, config.window_blocks = attention.last_block_length, attention.window_blocks
    config.layer_types = layer_kinds(policy, config.num_hidden_layers)
