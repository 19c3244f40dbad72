"""The shape of a conversation record, and the exchanges in one.

A record is `{"conversations": [{"from": "human", "value": str}, {"from": "gpt", "value": str}, ...], "system": str?}`.
A turn of gpt with `"train": false` is history only: it is never an answer that is taught.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen3llada.corpus.conversations.fields import GPT, HUMAN, SHAPES
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
    """One human→gpt pair, with what came before it: earlier pairs, oldest first, and the system prompt."""

    human: str
    gpt: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()


def visible(text: str) -> str:
    """The text with what cannot be printed, or not be written as UTF-8, escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_taught(turn: Mapping[str, Any]) -> bool:
    """Whether a mapped turn of gpt is an answer to teach. Raises: InputError for a mark that is neither yes nor no."""
    mark = turn.get("train", True)
    if not isinstance(mark, bool):
        raise InputError(f"weight, train or loss of a turn must be true or false (1 or 0), not {mark!r:.40}")
    return mark


def exchanges(record: Mapping[str, Any], turns: Turns = "all") -> list[Exchange]:
    """The human→gpt pairs of a mapped record whose answers are taught: the first, the last, or all of them.

    The pairs before, taught or not, are the history of each. A turn that belongs to no pair is not used.

    Raises:
        InputError: `record` is no record, or holds no pair that is taught.
    """
    conversation, system = record.get("conversations"), record.get("system")
    if not isinstance(conversation, list):
        raise InputError(f"a record must have {SHAPES}; this one has {sorted(map(str, record))}")
    if system is not None and not isinstance(system, str):
        raise InputError(f"{system=} must be text or absent")
    found: list[tuple[str, str]] = []
    numbers: list[int] = []  # of the pairs that are taught
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
