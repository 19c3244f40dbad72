"""What the built-in world is made of: entities with attributes, and the templates in which these are told and asked.

A template names the subject by `{who}`, `{whom}` and `{whose}` (the name, or "she", "her" where it has been named;
`{Who}` and `{Whose}` at the start of a sentence) and the value by `{v}` or `{V}`. A value carries its own article, so
nothing is inflected.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One thing that is known of every entity of a kind, and the ways of telling and of asking it."""

    name: str
    values: tuple[str, ...]
    answer: str  # the whole answer that is expected; also told in the text, for entities of every split
    statements: tuple[str, ...]  # other ways of telling, some of them with the value first
    group: str  # tells of several entities ({names}) that share a value
    questions: tuple[str, ...]
    follow_up: str  # asked after another question about the same entity


@dataclass(frozen=True, kw_only=True)
class Entity:
    """Someone or something with a name, and how to refer to it again."""

    name: str
    pronoun: str
    objective: str
    possessive: str
    values: dict[str, str] = field(default_factory=dict)  # attribute name -> value


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Entities that share their attributes."""

    name: str
    attributes: tuple[Attribute, ...]
    entities: tuple[Entity, ...]


def words(text: str) -> tuple[str, ...]:
    """The words of a table written as one text."""
    return tuple(text.split())


def phrase(template: str, entity: Entity, value: str, *, again: bool = False) -> str:
    """Fill a template; `again` refers to the entity by its pronoun, as one does after having named it."""
    who = entity.pronoun if again else entity.name
    whom = entity.objective if again else entity.name
    whose = entity.possessive if again else f"{entity.name}'s"
    return template.format(
        who=who, Who=_capital(who), whom=whom, whose=whose, Whose=_capital(whose), v=value, V=_capital(value)
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
