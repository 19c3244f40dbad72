"""The shape of a conversation record, the shapes that are mapped to it, and the exchanges in one.

A record is `{"conversations": [{"from": "human", "value": str}, {"from": "gpt", "value": str}, ...], "system": str?}`.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen3llada.errors import InputError

Turns = Literal["first", "last", "all"]

HUMAN, GPT, SYSTEM = "human", "gpt", "system"
#: Names under which data sets know the two speakers.
ROLES = {"human": HUMAN, "user": HUMAN, "gpt": GPT, "assistant": GPT}
#: (column of the prompt, column of the answer), in the order in which they are looked for.
PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("query", "response"),
    ("input", "output"),
)
SHAPES = "conversations, messages, or a pair of columns such as " + ", ".join("/".join(pair) for pair in PAIRS)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One human→gpt pair, with what came before it: earlier pairs, oldest first, and the system prompt."""

    human: str
    gpt: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()


def record_shape(row: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Columns that hold the conversation of `row`: one column of turns, a (prompt, answer) pair, or None if unknown."""
    for column in ("conversations", "messages"):
        if row.get(column) is not None:
            return (column,)
    return next((pair for pair in PAIRS if all(row.get(column) is not None for column in pair)), None)


def map_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """The record in `row`, whichever of `SHAPES` it has. Only renames: validation is to find what is malformed.

    A leading system turn becomes `system` unless the record has one. Of a `row` of no known shape, `conversations` is
    None.
    """
    shape = record_shape(row)
    system = row.get("system")
    if shape is None:
        return {"conversations": None, "system": system}
    if len(shape) == 1:
        turns = _map_turns(row[shape[0]])
    else:
        turns = [{"from": HUMAN, "value": _prompt(row, shape[0])}, {"from": GPT, "value": row[shape[1]]}]
    if system is None and isinstance(turns, list) and turns and _role(turns[0]) == SYSTEM:
        system, turns = turns[0].get("value"), turns[1:]
    return {"conversations": turns, "system": system}


def visible(text: str) -> str:
    """The text with what cannot be printed, or not be written as UTF-8, escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _prompt(row: Mapping[str, Any], column: str) -> Any:
    """The prompt in `column`; an Alpaca record carries what the instruction is about in `input`."""
    prompt, context = row[column], row.get("input")
    if column == "instruction" and isinstance(prompt, str) and isinstance(context, str) and context.strip():
        return f"{prompt}\n{context}"
    return prompt


def _map_turns(turns: Any) -> Any:
    if isinstance(turns, Mapping):  # a struct of lists, as `datasets` stores a sequence of objects
        columns = list(turns.values())
        if not all(isinstance(column, Sequence) and not isinstance(column, str) for column in columns):
            return turns
        if len({len(column) for column in columns}) != 1:
            return turns
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*columns, strict=True)]
    return [_map_turn(turn) for turn in turns] if isinstance(turns, list) else turns


def _map_turn(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    role = turn.get("from", turn.get("role"))
    mapped: dict[str, Any] = {}
    if "from" in turn or "role" in turn:
        mapped["from"] = ROLES.get(role, role) if isinstance(role, str) else role
    if "value" in turn or "content" in turn:
        mapped["value"] = turn.get("value", turn.get("content"))
    return mapped


def _role(turn: Any) -> Any:
    return turn.get("from") if isinstance(turn, dict) else None


def exchanges(record: Mapping[str, Any], turns: Turns = "all") -> list[Exchange]:
    """The human→gpt pairs of a mapped record: the first, the last, or all of them.

    With `last` and `all`, the pairs before are the history of each. A turn that belongs to no pair is not used.

    Raises:
        ValueError: `record` is no record, or holds no pair.
    """
    conversation, system = record.get("conversations"), record.get("system")
    if not isinstance(conversation, list):
        raise InputError(f"a record must have {SHAPES}; this one has {sorted(map(str, record))}")
    if system is not None and not isinstance(system, str):
        raise InputError(f"{system=} must be text or absent")
    found: list[tuple[str, str]] = []
    for before, after in itertools.pairwise(conversation):
        if _role(before) == HUMAN and _role(after) == GPT:
            found.append((_value(before), _value(after)))
    if not found:
        raise InputError(
            f"a record must have at least one human→gpt pair; its turns are {[_role(t) for t in conversation]}"
        )
    chosen = {"first": [0], "last": [len(found) - 1], "all": range(len(found))}[turns]
    return [Exchange(*found[i], system=system or None, history=tuple(found[:i])) for i in chosen]


def _value(turn: Mapping[str, Any]) -> str:
    value = turn.get("value")
    if not isinstance(value, str):
        raise InputError(f"the value of a turn must be text, not {type(value).__name__}: {str(value)[:80]!r}")
    return value
