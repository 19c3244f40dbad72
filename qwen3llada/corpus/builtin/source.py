"""The built-in source: a small generated world described in text, conversations about it, and a tiny Qwen3 checkpoint.

Everything is determined bit for bit by `BuiltinParams`, so the pipeline runs from a fresh clone without a network.

The held-out questions test the following. The pretraining text states every fact in several wordings and orders. SFT
asks about most (entity, attribute) pairs. Held out are only pairs of people; there are too few towns, crafts and
animals to learn from the others what a question means. A held-out pair never occurs in SFT, neither as a question nor
as an answer in any turn, and no text has the form of a question. A right answer therefore needs knowledge from
pretraining and the answering behaviour from SFT; neither stage alone is enough.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3llada.artifacts import write_jsonl
from qwen3llada.corpus.builtin.grammar import Kind
from qwen3llada.corpus.builtin.model import write_tokenizer, write_weights
from qwen3llada.corpus.builtin.params import BuiltinParams
from qwen3llada.corpus.builtin.wording import documents, heldout_conversations, train_conversations
from qwen3llada.corpus.builtin.world import build_world, hold_out

if TYPE_CHECKING:
    import numpy as np


def write_builtin_text(folder: str | Path, params: BuiltinParams) -> None:
    """Write the pretraining text to `folder` as train.jsonl and heldout.jsonl, one {"text": document} per line.

    Raises: InputError if the world is too small for so many different documents.
    """
    train, heldout = builtin_documents(params)
    for split, texts in (("train", train), ("heldout", heldout)):
        write_jsonl(Path(folder, f"{split}.jsonl"), ({"text": text} for text in texts))


def builtin_documents(params: BuiltinParams) -> tuple[list[str], list[str]]:
    """Training documents and held-out documents, all distinct."""
    texts = documents(builtin_world(params), params.documents + params.heldout_documents, _rng(params, "documents"))
    return texts[: params.documents], texts[params.documents :]


def write_builtin_conversations(folder: str | Path, params: BuiltinParams) -> None:
    """Write the conversations to `folder` as train.jsonl and heldout.jsonl, disjoint in (entity, attribute)."""
    for split, records in zip(("train", "heldout"), builtin_conversations(params), strict=True):
        write_jsonl(Path(folder, f"{split}.jsonl"), records)


def builtin_conversations(params: BuiltinParams) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training conversations and held-out conversations, as records."""
    kinds = builtin_world(params)
    people = tuple(kind for kind in kinds if kind.name == "person")
    held = hold_out(people, params.heldout_one_in, _rng(params, "hold out"))
    share = params.system_share
    train = train_conversations(
        kinds, held, system_share=share, two_turns=params.two_turns, rng=_rng(params, "conversations")
    )
    return train, heldout_conversations(kinds, held, system_share=share, rng=_rng(params, "held-out conversations"))


def write_builtin_model(folder: str | Path, params: BuiltinParams) -> None:
    """Write a tiny Qwen3 checkpoint with random weights to `folder`, with the files of a hub repository.

    Its tokenizer is trained on the training text and the training conversations.

    Raises: InputError if the text does not yield `bpe_tokens` tokens.
    """
    texts, _ = builtin_documents(params)
    records, _ = builtin_conversations(params)
    texts += [message["value"] for record in records for message in record["conversations"]]
    texts += [record["system"] for record in records if "system" in record]
    write_tokenizer(Path(folder), texts, bpe_tokens=params.bpe_tokens)
    write_weights(Path(folder), params, seed=_seed(params, "weights"))


def builtin_world(params: BuiltinParams) -> tuple[Kind, ...]:
    """The world that text and conversations describe."""
    return build_world(params.people, _rng(params, "world"))


def _seed(params: BuiltinParams, purpose: str) -> int:
    """A separate seed for each purpose, so that resizing one part does not redraw the others."""
    import numpy as np

    return int(np.random.SeedSequence([params.seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])


def _rng(params: BuiltinParams, purpose: str) -> np.random.Generator:
    import numpy as np

    return np.random.Generator(np.random.Philox(_seed(params, purpose)))
