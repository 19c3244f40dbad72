"""Conversation records, and the exchanges in them.

A record is `{"conversations": [{"from": "human", "value": str}, {"from": "gpt", "value": str}, ...], "system": str?}`.
A gpt turn with `"train": false` is only history; its answer is never trained on.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen3llada.corpus.conversations.fields import GPT, HUMAN, SHAPES_IN_WORDS
from qwen3llada.corpus.conversations.mapping import map_record, role_of
from qwen3llada.errors import InputError

__all__ = [
    "GPT",
    "HUMAN",
    "Exchange",
    "Turns",
    "exchanges",
    "is_taught",
    "map_record",
    "role_of",
    "turn_text",
    "visible",
]

Turns = Literal["first", "last", "all"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One human→gpt pair with its context: earlier pairs, oldest first, and the system prompt."""

    human: str
    gpt: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()


def visible(text: str) -> str:
    """Escape characters that cannot be printed or not be written as UTF-8."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_taught(turn: Mapping[str, Any]) -> bool:
    """Whether a mapped gpt turn is trained on. Raises: InputError for a mark that is neither true nor false."""
    mark = turn.get("train", True)
    if not isinstance(mark, bool):
        raise InputError(f"weight, train or loss of a turn must be true or false (1 or 0), not {mark!r:.40}")
    return mark


def exchanges(record: Mapping[str, Any], turns: Turns = "all") -> list[Exchange]:
    """The human→gpt pairs of a mapped record whose answers are trained on: the first, the last, or all of them.

    All earlier pairs, trained on or not, are the history of each. Turns outside pairs are not used.

    Raises:
        InputError: `record` is no record, or has no pair to train on.
    """
    conversation, system = record.get("conversations"), record.get("system")
    if not isinstance(conversation, list):
        raise InputError(f"a record must have {SHAPES_IN_WORDS}; this one has {sorted(map(str, record))}")
    if system is not None and not isinstance(system, str):
        raise InputError(f"{system=} must be text or absent")
    found: list[tuple[str, str]] = []
    numbers: list[int] = []  # indices of pairs to train on
    for before, after in itertools.pairwise(conversation):
        if role_of(before) == HUMAN and role_of(after) == GPT:
            numbers += [len(found)] if is_taught(after) else []
            found.append((turn_text(before), turn_text(after)))
    if not numbers:
        untaught = f", {len(found)} of them not to be taught" if found else ""
        shown = [role_of(turn) for turn in conversation]
        raise InputError(f"a record must have at least one human→gpt pair; its turns are {shown}{untaught}")
    chosen = {"first": numbers[:1], "last": numbers[-1:], "all": numbers}[turns]
    return [Exchange(*found[i], system=system or None, history=tuple(found[:i])) for i in chosen]


def turn_text(turn: Mapping[str, Any]) -> str:
    """The text of a mapped turn. Raises: InputError if it has none."""
    value = turn.get("value")
    if not isinstance(value, str):
        raise InputError(f"the value of a turn must be text, not {type(value).__name__}: {str(value)[:80]!r}")
    return value
