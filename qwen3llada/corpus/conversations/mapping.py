"""Mapping of a row of any known shape to a record: the columns of the conversation, and the other columns."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3llada.corpus.conversations.fields import (
    GPT,
    HISTORY,
    HUMAN,
    PAIRS,
    PROMPTS,
    ROLE_FIELDS,
    ROLES,
    SYSTEM,
    SYSTEM_FIELDS,
    TEXT_FIELDS,
    TURN_LISTS,
    answer_text,
    content_text,
    filled,
    pick,
    prompt_text,
    taught,
)


def record_shape(row: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The columns that hold the conversation of `row`: one column of turns, a (prompt, answer) pair, or None (unknown).

    The first shape whose columns are all filled; else the first whose columns are not null.
    """
    shapes: list[tuple[str, ...]] = [*((column,) for column in TURN_LISTS), *PAIRS]
    present = [shape for shape in shapes if all(row.get(column) is not None for column in shape)]
    return next((shape for shape in present if all(filled(row[column]) for column in shape)), next(iter(present), None))


def map_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """The record in `row`, for any shape of `TURN_LISTS` and `PAIRS`. Damaged parts are kept, for validation to find.

    For a row of unknown shape `conversations` is None.
    """
    shape = record_shape(row)
    turns = None if shape is None else _turns(row, *shape)
    return _with_system(row, turns)


def map_question(row: Mapping[str, Any]) -> dict[str, Any]:
    """Like `map_record`, for rows that need no answer: a prompt column alone is one human turn."""
    shape = record_shape(row)
    if shape is None or not all(filled(row[column]) for column in shape):
        alone = pick(row, PROMPTS)
        if alone is not None and (shape is None or filled(row[alone])):
            shape = (alone, "")
    return _with_system(row, None if shape is None else _turns(row, *shape))


def _turns(row: Mapping[str, Any], column: str, answer: str | None = None) -> Any:
    """The mapped turns of a column of turns, or of a prompt and its answer. `answer=""`: no answer."""
    if answer is None:
        return _map_turns(row[column])
    if isinstance(row[column], list | Mapping):  # TRL: a list of turns, none of which is trained on
        asked = _map_turns(row[column])
        if not isinstance(asked, list):
            return asked
        asked = [{**turn, "train": False} if role_of(turn) == GPT else turn for turn in asked]
    else:
        asked = [{"from": HUMAN, "value": prompt_text(row, column)}]
    given: Any = []
    if answer and isinstance(row[answer], list | Mapping):
        given = _map_turns(row[answer])
    elif answer:
        given = [{"from": GPT, "value": answer_text(row, row[answer])}]
        if taught(row) is False:
            given[0]["train"] = False
    return [*history_turns(row.get(HISTORY)), *asked, *given] if isinstance(given, list) else given


def history_turns(value: Any) -> list[Any]:
    """The turns of a `history` of [human, gpt] pairs (Alpaca) or of turns; [] for any other value, which is unused."""
    if not isinstance(value, list | Mapping) or not filled(value):
        return []
    if isinstance(value, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        return [{"from": role, "value": text} for pair in value for role, text in zip((HUMAN, GPT), pair, strict=True)]
    turns = _map_turns(value)
    return turns if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns) else []


def _map_turns(turns: Any) -> Any:
    if isinstance(turns, Mapping):  # a struct of lists, as `datasets` stores a sequence of objects
        columns = {name: column for name, column in turns.items() if column is not None}
        if not all(isinstance(column, Sequence) and not isinstance(column, str) for column in columns.values()):
            return turns
        if len({len(column) for column in columns.values()}) != 1:
            return turns
        turns = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [_map_turn(turn) for turn in turns] if isinstance(turns, list) else turns


def _map_turn(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    mapped: dict[str, Any] = {}
    if (role := pick(turn, ROLE_FIELDS)) is not None:
        given = [turn[key] for key in ROLE_FIELDS if isinstance(turn.get(key), str) and filled(turn[key])]
        names = list(dict.fromkeys(ROLES.get(name, name) for name in given))
        # Names of different speakers are joined: the result is no role, so validation finds it.
        mapped["from"] = "/".join(names) if names else turn[role]
    if (text := pick(turn, TEXT_FIELDS)) is not None:
        mapped["value"] = content_text(turn[text])
    if mapped.get("from") == GPT:
        if "value" in mapped:
            mapped["value"] = answer_text(turn, mapped["value"])
        if (mark := taught(turn)) is not True:
            mapped["train"] = mark
    return mapped


def _with_system(row: Mapping[str, Any], turns: Any) -> dict[str, Any]:
    """The record of mapped turns. The system prompt is the field's text, then that of each leading system turn."""
    field = pick(row, SYSTEM_FIELDS)
    system = content_text(row[field]) if field is not None else None
    if not isinstance(turns, list):
        return {"conversations": turns, "system": system}
    leading = list(itertools.takewhile(lambda turn: role_of(turn) == SYSTEM, turns))
    values = [value for value in (system, *(turn.get("value") for turn in leading)) if value is not None]
    if all(isinstance(value, str) for value in values):
        texts = list(dict.fromkeys(filter(filled, values))) or values[:1]
        system = "\n".join(texts) if texts else None
    else:  # damage, for validation to find
        system = next(value for value in values if not isinstance(value, str))
    return {"conversations": _fold_system(turns[len(leading) :]), "system": system}


def _fold_system(turns: list[Any]) -> list[Any]:
    """Merge each later system turn into the adjacent prompt, because many chat templates drop such turns.

    A system turn before a human turn goes above its text, one between human and gpt below. Others stay turns.
    """
    folded: list[Any] = []
    waiting: list[Any] = []
    for turn in turns:
        if role_of(turn) == SYSTEM and isinstance(turn.get("value"), str):
            waiting.append(turn)
            continue
        texts = [single["value"] for single in waiting if filled(single["value"])]
        if waiting and _asks(turn):
            turn, waiting = {**turn, "value": "\n".join([*texts, turn["value"]])}, []
        elif waiting and role_of(turn) == GPT and folded and _asks(folded[-1]):
            folded[-1], waiting = {**folded[-1], "value": "\n".join([folded[-1]["value"], *texts])}, []
        folded += [*waiting, turn]
        waiting = []
    return folded + waiting


def _asks(turn: Any) -> bool:
    return role_of(turn) == HUMAN and isinstance(turn.get("value"), str) and filled(turn["value"])


def role_of(turn: Any) -> Any:
    """The role of a mapped turn; None if it is no turn or has none."""
    return turn.get("from") if isinstance(turn, dict) else None
