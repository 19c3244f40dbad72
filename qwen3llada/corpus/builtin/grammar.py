"""Building blocks of the built-in world: entities with attributes, and templates that state them and ask about them.

A template names the subject by `{who}`, `{whom}` and `{whose}`: the name, or a pronoun if it has been named before;
`{Who}` and `{Whose}` start a sentence. `{v}` or `{V}` is the value. A value carries its own article, so nothing is
inflected.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One property of every entity of a kind, with templates that state it and ask about it."""

    name: str
    values: tuple[str, ...]
    answer: str  # the full answer to a question; also used in the text, for entities of every split
    statements: tuple[str, ...]  # other wordings, some of them with the value first
    group: str  # states the shared value of several entities ({names})
    questions: tuple[str, ...]
    follow_up: str  # question after another one about the same entity


@dataclass(frozen=True, kw_only=True)
class Entity:
    """Someone or something with a name, and its pronouns."""

    name: str
    pronoun: str
    objective: str
    possessive: str
    values: dict[str, str] = field(default_factory=dict)  # attribute name -> value


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Entities with the same attributes."""

    name: str
    attributes: tuple[Attribute, ...]
    entities: tuple[Entity, ...]


def words(text: str) -> tuple[str, ...]:
    """Split a table that is written as one text into its words."""
    return tuple(text.split())


def phrase(template: str, entity: Entity, value: str, *, again: bool = False) -> str:
    """Fill in a template. `again`: use the entity's pronouns, because it has been named before."""
    who = entity.pronoun if again else entity.name
    whom = entity.objective if again else entity.name
    whose = entity.possessive if again else f"{entity.name}'s"
    return template.format(
        who=who, Who=_capital(who), whom=whom, whose=whose, Whose=_capital(whose), v=value, V=_capital(value)
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
