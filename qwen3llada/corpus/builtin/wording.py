"""The built-in world in words: documents that state its facts, and conversations that ask about them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qwen3llada.corpus.builtin.grammar import Attribute, Entity, Kind, phrase
from qwen3llada.errors import InputError

if TYPE_CHECKING:
    import numpy as np

SYSTEM_PROMPTS = (
    "You know everyone in the Alder valley.",
    "Answer in one short sentence.",
    "You are a guide to the Alder valley.",
)
PROFILE_SHARE, GROUP_SHARE = 0.9, 0.05  # shares of documents; the rest contrast two entities
LONGEST_PROFILE = 4  # facts
LARGEST_GROUP = 4  # names


def documents(kinds: tuple[Kind, ...], count: int, rng: np.random.Generator) -> list[str]:
    """Draw `count` distinct short documents. Every fact occurs equally often, in random order.

    Raises: InputError if the world is too small for so many different documents.
    """
    told: dict[str, None] = {}
    subjects = [(kind, entity) for kind, entity, _ in _pairs(kinds)]  # each entity once per fact
    while len(told) < count:
        before = len(told)
        for index in rng.permutation(len(subjects)):
            kind, entity = subjects[index]
            told[_document(kind, entity, rng)] = None
        if len(told) == before:
            raise InputError(f"documents={count} is more than this world can tell; it has told {before}")
    return list(told)[:count]


def _document(kind: Kind, entity: Entity, rng: np.random.Generator) -> str:
    form = rng.random()
    if form < PROFILE_SHARE:
        return _profile(kind, entity, rng)
    attribute = _choose(kind.attributes, rng)
    value = entity.values[attribute.name]
    alike = [other for other in kind.entities if other.values[attribute.name] == value]
    if form < PROFILE_SHARE + GROUP_SHARE and len(alike) > 1:
        return _group(attribute, value, alike, rng)
    return _contrast(kind, attribute, entity, rng)


def _profile(kind: Kind, entity: Entity, rng: np.random.Generator) -> str:
    """Some facts of one entity, in random order and wording. Each sentence names the entity.

    Names instead of pronouns: a model of half a million parameters then learns its facts several times faster.
    """
    most = min(len(kind.attributes), LONGEST_PROFILE)
    chosen = rng.permutation(len(kind.attributes))[: rng.integers(1, most + 1)]
    sentences = []
    for index in chosen:
        attribute = kind.attributes[index]
        template = _choose((attribute.answer, *attribute.statements), rng)
        sentences.append(phrase(template, entity, entity.values[attribute.name]))
    return " ".join(sentences)


def _group(attribute: Attribute, value: str, alike: list[Entity], rng: np.random.Generator) -> str:
    size = rng.integers(2, min(len(alike), LARGEST_GROUP) + 1)
    names = [alike[i].name for i in rng.permutation(len(alike))[:size]]
    sentence = attribute.group.format(names=f"{', '.join(names[:-1])} and {names[-1]}", v=value)
    return sentence[:1].upper() + sentence[1:]


def _contrast(kind: Kind, attribute: Attribute, entity: Entity, rng: np.random.Generator) -> str:
    other = _choose([e for e in kind.entities if e is not entity] or [entity], rng)
    link = "and" if other.values[attribute.name] == entity.values[attribute.name] else "but"
    first = phrase(attribute.answer, entity, entity.values[attribute.name]).removesuffix(".")
    second = phrase(attribute.answer.replace("{Who}", "{who}"), other, other.values[attribute.name])
    return f"{first}, {link} {second}"


def train_conversations(
    kinds: tuple[Kind, ...],
    held_out: set[tuple[str, str]],
    *,
    system_share: float,
    two_turns: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Ask about every pair that is not held out: once per wording, and as the first question of `two_turns` dialogues.

    The second question of a dialogue is about another such pair of the same entity. The order is random.
    """
    records = []
    for kind, entity, attribute in _pairs(kinds):
        if (entity.name, attribute.name) in held_out:
            continue
        records += [[_turn(entity, attribute, wording)] for wording in attribute.questions]
        others = [a for a in kind.attributes if a is not attribute and (entity.name, a.name) not in held_out]
        for _ in range(two_turns if others else 0):
            second = _choose(others, rng)
            records.append(
                [
                    _turn(entity, attribute, _choose(attribute.questions, rng)),
                    _turn(entity, second, second.follow_up, again=True),
                ]
            )
    return [_record(records[i], system_share, rng) for i in rng.permutation(len(records))]


def heldout_conversations(
    kinds: tuple[Kind, ...], held_out: set[tuple[str, str]], *, system_share: float, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Ask about every held-out pair once, in a random wording, in one turn. The order is random."""
    records = [
        [_turn(entity, attribute, _choose(attribute.questions, rng))]
        for _, entity, attribute in _pairs(kinds)
        if (entity.name, attribute.name) in held_out
    ]
    return [_record(records[i], system_share, rng) for i in rng.permutation(len(records))]


def _pairs(kinds: tuple[Kind, ...]) -> Iterator[tuple[Kind, Entity, Attribute]]:
    return ((kind, entity, attribute) for kind in kinds for entity in kind.entities for attribute in kind.attributes)


def _turn(entity: Entity, attribute: Attribute, question: str, *, again: bool = False) -> list[dict[str, str]]:
    value = entity.values[attribute.name]
    return [
        {"from": "human", "value": phrase(question, entity, value, again=again)},
        {"from": "gpt", "value": phrase(attribute.answer, entity, value)},
    ]


def _record(turns: list[list[dict[str, str]]], system_share: float, rng: np.random.Generator) -> dict[str, Any]:
    record: dict[str, Any] = {"conversations": [message for turn in turns for message in turn]}
    if rng.random() < system_share:
        record["system"] = _choose(SYSTEM_PROMPTS, rng)
    return record


def _choose(items, rng: np.random.Generator):
    return items[rng.integers(len(items))]
