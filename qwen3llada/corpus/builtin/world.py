"""The built-in world: people, towns, crafts and animals of the Alder valley, and the pairs held out of SFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen3llada.corpus.builtin.grammar import Attribute, Entity, Kind
from qwen3llada.corpus.builtin.tables import ANIMAL, ANIMALS, CRAFT, CRAFTS, MEN, PERSON, TOWN, TOWNS, WOMEN
from qwen3llada.errors import InputError

if TYPE_CHECKING:
    import numpy as np


def _draw(attributes: tuple[Attribute, ...], count: int, rng: np.random.Generator) -> list[dict[str, str]]:
    """Values of `count` entities. Each value of an attribute occurs as evenly as possible."""
    columns = {}
    for attribute in attributes:
        order = rng.permutation(count) % len(attribute.values)
        shuffled = rng.permutation(len(attribute.values))
        columns[attribute.name] = [attribute.values[shuffled[i]] for i in order]
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def build_world(people: int, rng: np.random.Generator) -> tuple[Kind, ...]:
    """Draw a world with `people` people, at most all of `WOMEN` and `MEN`.

    Values of towns and people are drawn; crafts and animals are the same in every world.
    """
    names = [name for pair in zip(WOMEN, MEN, strict=True) for name in pair]
    if not 0 < people <= len(names):
        raise InputError(f"{people=} must be between 1 and {len(names)}")
    persons = tuple(
        Entity(name=name, pronoun="she", objective="her", possessive="her", values=values)
        if name in WOMEN
        else Entity(name=name, pronoun="he", objective="him", possessive="his", values=values)
        for name, values in zip(names[:people], _draw(PERSON, people, rng), strict=True)
    )
    towns = tuple(
        Entity(name=name, pronoun="it", objective="it", possessive="its", values=values)
        for name, values in zip(TOWNS, _draw(TOWN, len(TOWNS), rng), strict=True)
    )
    crafts = tuple(
        Entity(
            name=name, pronoun=name, objective=name, possessive=f"{name}'s", values={"tool": tool, "material": material}
        )
        for name, (tool, material) in CRAFTS.items()
    )
    animals = tuple(
        Entity(name=name, pronoun="it", objective="it", possessive="its", values={"food": food, "shelter": shelter})
        for name, (food, shelter) in ANIMALS.items()
    )
    return (
        Kind(name="person", attributes=PERSON, entities=persons),
        Kind(name="town", attributes=TOWN, entities=towns),
        Kind(name="craft", attributes=CRAFT, entities=crafts),
        Kind(name="animal", attributes=ANIMAL, entities=animals),
    )


def hold_out(kinds: tuple[Kind, ...], one_in: int, rng: np.random.Generator) -> set[tuple[str, str]]:
    """Choose one of `one_in` (entity, attribute) pairs of each kind for the held-out questions.

    The choice runs diagonally over shuffled entities. So each attribute is held out for the same share of entities, and
    no entity loses all its questions.
    """
    held = set()
    for kind in kinds:
        for row, entity in enumerate(rng.permutation(len(kind.entities))):
            for column, attribute in enumerate(kind.attributes):
                if (row + column) % one_in == 0:
                    held.add((kind.entities[entity].name, attribute.name))
    return held
