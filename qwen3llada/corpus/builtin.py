"""The built-in source: a small generated world told in text, conversations about it, and a tiny Qwen3 checkpoint.

All of it follows from `BuiltinParams` alone, bit for bit, so the pipeline runs from a fresh clone with no network.

What the held-out questions test. Every fact is told in the pretraining text, in several wordings and orders. SFT asks
about most (entity, attribute) pairs. Held out are pairs of people: of towns, crafts and animals there are too few for a
model to learn from the others what a question means. The held-out pairs never occur in SFT, neither as a question nor
as an answer in any turn, and no text has the form of a question. So a right answer to a held-out question takes
knowledge from pretraining and the habit of answering from SFT: neither stage alone holds the pair of both.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from qwen3llada.artifacts import write_jsonl
from qwen3llada.corpus.builtin_grammar import Kind
from qwen3llada.corpus.builtin_tables import MEN, WOMEN
from qwen3llada.corpus.builtin_text import documents, heldout_conversations, train_conversations
from qwen3llada.corpus.builtin_world import build_world, hold_out
from qwen3llada.errors import InputError
from qwen3llada.section import Section

if TYPE_CHECKING:
    import numpy as np


class BuiltinParams(Section):
    """The sizes of the generated world, of its texts and of the tiny Qwen3 model."""

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


def write_builtin_text(folder: str | Path, params: BuiltinParams) -> None:
    """Write the pretraining text to `folder` as train.jsonl and heldout.jsonl, one {"text": document} per line.

    Raises: InputError if the world is too small for so many different documents.
    """
    train, heldout = builtin_documents(params)
    for split, texts in (("train", train), ("heldout", heldout)):
        write_jsonl(Path(folder, f"{split}.jsonl"), ({"text": text} for text in texts))


def builtin_documents(params: BuiltinParams) -> tuple[list[str], list[str]]:
    """The training documents and the held-out ones; all are distinct."""
    texts = documents(builtin_world(params), params.documents + params.heldout_documents, _rng(params, "documents"))
    return texts[: params.documents], texts[params.documents :]


def write_builtin_conversations(folder: str | Path, params: BuiltinParams) -> None:
    """Write the conversations to `folder` as train.jsonl and heldout.jsonl, disjoint in (entity, attribute)."""
    for split, records in zip(("train", "heldout"), builtin_conversations(params), strict=True):
        write_jsonl(Path(folder, f"{split}.jsonl"), records)


def builtin_conversations(params: BuiltinParams) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training conversations and the held-out ones, as records."""
    kinds = builtin_world(params)
    people = tuple(kind for kind in kinds if kind.name == "person")
    held = hold_out(people, params.heldout_one_in, _rng(params, "hold out"))
    share = params.system_share
    train = train_conversations(
        kinds, held, system_share=share, two_turns=params.two_turns, rng=_rng(params, "conversations")
    )
    return train, heldout_conversations(kinds, held, system_share=share, rng=_rng(params, "held-out conversations"))


def write_builtin_model(folder: str | Path, params: BuiltinParams) -> None:
    """Write a tiny Qwen3 checkpoint with random weights to `folder`, in the files that the hub serves.

    Its tokenizer is trained on the training text and the training conversations.

    Raises: InputError if `bpe_tokens` is more than the text has merges for.
    """
    from qwen3llada.corpus.builtin_model import write_tokenizer, write_weights

    texts, _ = builtin_documents(params)
    records, _ = builtin_conversations(params)
    texts += [message["value"] for record in records for message in record["conversations"]]
    texts += [record["system"] for record in records if "system" in record]
    write_tokenizer(Path(folder), texts, bpe_tokens=params.bpe_tokens)
    write_weights(Path(folder), params, seed=_seed(params, "weights"))


def builtin_world(params: BuiltinParams) -> tuple[Kind, ...]:
    """The world that the text and the conversations share."""
    return build_world(params.people, _rng(params, "world"))


def _seed(params: BuiltinParams, purpose: str) -> int:
    """A seed of its own for each purpose, so that resizing one thing does not redraw the others."""
    import numpy as np

    return int(np.random.SeedSequence([params.seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])


def _rng(params: BuiltinParams, purpose: str) -> np.random.Generator:
    import numpy as np

    return np.random.Generator(np.random.Philox(_seed(params, purpose)))
