"""Parameters of the built-in world and its model: the section `builtin`."""

from __future__ import annotations

from pydantic import Field, model_validator

from qwen3llada.corpus.builtin.tables import MEN, WOMEN
from qwen3llada.errors import InputError
from qwen3llada.section import Section


class BuiltinParams(Section):
    """Sizes of the generated world, its texts, and the tiny Qwen3 model."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of the world, the texts and the weights (0 to below 2^63)")
    people: int = Field(
        40, ge=4, le=len(WOMEN) + len(MEN), description="people in the world, each with five facts (4 to 64)"
    )
    documents: int = Field(
        6000, ge=100, le=1_000_000, description="pretraining documents of one to four sentences (100 to 1,000,000)"
    )
    heldout_documents: int = Field(
        200, ge=1, le=100_000, description="further documents, none of them in the training text (1 to 100,000)"
    )
    heldout_one_in: int = Field(
        4,
        ge=2,
        le=1000,
        description="one (person, attribute) pair in this many is held out of the SFT conversations (2 to 1,000)",
    )
    two_turns: int = Field(
        1, ge=0, le=100, description="conversations of two turns per pair that is not held out (0 to 100)"
    )
    system_share: float = Field(
        0.25, ge=0, le=1, description="share of conversations that have a system prompt (0 to 1)"
    )
    bpe_tokens: int = Field(
        1024,
        ge=257,
        le=50000,
        description="byte-level BPE tokens, 256 bytes included, special tokens not (257 to 50,000)",
    )
    free_rows: int = Field(
        16,
        ge=0,
        le=65536,
        description="embedding rows beyond the tokenizer, at least (0 to 65,536); the total is a multiple of 64",
    )
    hidden_size: int = Field(128, ge=8, le=4096, description="width of the model (8 to 4,096)")
    layers: int = Field(3, ge=1, le=64, description="number of transformer layers (1 to 64)")
    head_dim: int = Field(32, ge=2, le=256, multiple_of=2, description="width of an attention head, even (2 to 256)")
    heads: int = Field(4, ge=1, le=64, description="query heads, a multiple of kv_heads (1 to 64)")
    kv_heads: int = Field(2, ge=1, le=64, description="key and value heads (grouped-query attention; 1 to 64)")
    intermediate_size: int = Field(384, ge=8, le=16384, description="width of the feed-forward layers (8 to 16,384)")
    initializer_range: float = Field(
        0.02, ge=1e-6, le=1, description="standard deviation of the initial weights (1e-06 to 1)"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> BuiltinParams:
        if self.heads % self.kv_heads:
            raise InputError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        return self
