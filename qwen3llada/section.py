"""Base class of all parameter sections. A section is in the module that it configures; `params.py` composes them."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, SecretStr, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

MAX_TOKENS = 2**20
"""Upper bound of knobs that count tokens of a sequence: more than the longest context of any Qwen3 model."""


class StrictKinds(BaseModel):
    """Booleans must be true or false, and numbers must be numbers. pydantic alone converts between them."""

    @field_validator("*", mode="before", check_fields=False)
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = plain_types(cls.model_fields[str(info.field_name)].annotation)
        if bool in kinds and isinstance(value, int | float | str) and not isinstance(value, bool):
            if value not in ("true", "false"):
                raise ValueError(f"given {value!r}, must be true or false")
        elif bool not in kinds and kinds & {int, float}:
            given = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(part, bool) for part in given):
                raise ValueError(f"given {value!r}, must be a number, not true or false")
        return value


class Section(StrictKinds):
    """A frozen, validated group of parameters. Unknown keys, wrong types and non-finite numbers are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )


def refuse_unused(section: BaseModel, names: Iterable[str], under: str) -> None:
    """Raises ValueError if a knob among `names`, which have no effect `under` other settings, is not at its default.

    Parameter files may state every knob, so the default is no error.
    """
    for name in names:
        value, default = getattr(section, name), type(section).model_fields[name].default
        if value != default:
            raise ValueError(f"{name}={_written(value)} has no effect under {under}: leave it at {_written(default)}")


def _written(value: Any) -> str:
    """A value as it is written in a parameter file."""
    return str(list(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else value)


@dataclass(frozen=True, slots=True)
class OneOf:
    """Requires a knob's value to be a name in `registry` and not in `but`."""

    registry: Mapping[str, Any]
    but: Collection[str]

    @property
    def names(self) -> list[str]:
        """The allowed values. Read anew each time, so that adding a registry entry is enough to allow it."""
        return [name for name in self.registry if name not in self.but]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str, info: ValidationInfo) -> str:
        if value not in self.names:
            raise ValueError(f"{info.field_name}={value!r} must be one of {', '.join(self.names)}")
        return value


def one_of(registry: Mapping[str, Any], *, but: Collection[str] = ()) -> OneOf:
    """For the type of a knob, `Annotated[str, one_of(REGISTRY)]`: its value must be a name in `registry`, not in `but`.

    The registry is read when a value is validated and when `--help` lists the names.
    """
    return OneOf(registry, but)


def choices(field: FieldInfo) -> list[str] | None:
    """The names that a field made with `one_of` allows; None for other fields."""
    return next((item.names for item in field.metadata if isinstance(item, OneOf)), None)


def plain_types(annotation: Any) -> set[Any]:
    """The plain types in an annotation, also inside unions, tuples, lists and `Annotated`."""
    if parts := get_args(annotation):
        return set().union(*(plain_types(part) for part in parts))
    return {annotation} if isinstance(annotation, type) else set()


def is_secret(annotation: Any) -> bool:
    """Whether a knob of this type has a value that must not be printed: its type is `SecretStr`."""
    return SecretStr in plain_types(annotation)


def allowed_range(cls: type[BaseModel], loc: Sequence[int | str]) -> str | None:
    """Bounds of the number at `loc` (a key in the file, then positions inside it), as "1 to 65,536"; or None."""
    by_key = {field.alias or name: field for name, field in cls.model_fields.items()}
    field = by_key.get(str(loc[0])) if loc else None
    if field is None:
        return None
    inner = [kind for kind in plain_types(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    if inner:
        return allowed_range(inner[0], [part for part in loc[1:] if isinstance(part, str)])
    limits = {type(limit): limit for limit in _limits(field.annotation, field.metadata)}
    low = next((f"{word}{shown(limits[kind])}" for kind, word in _LOW.items() if kind in limits), "")
    high = next((f"{word}{shown(limits[kind])}" for kind, word in _HIGH.items() if kind in limits), "")
    return " ".join(part for part in (low, high) if part) or None


_LOW, _HIGH = {Ge: "", Gt: "above "}, {Le: "to ", Lt: "to below "}


def shown(limit: Ge | Gt | Le | Lt) -> str:
    """A bound as it is written in descriptions and messages: 65,536 or 1e-06 or 2^63."""
    (value,) = (getattr(limit, name) for name in ("ge", "gt", "le", "lt") if hasattr(limit, name))
    if value == 2**63:
        return "2^63"
    return f"{int(value):,}" if value == int(value) and value < 1e9 else f"{value:g}"


def _limits(annotation: Any, metadata: Iterable[Any]) -> Iterator[Ge | Gt | Le | Lt]:
    """All bounds of a field, including those of numbers inside unions and tuples."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _limits(None, item.metadata)
        elif isinstance(item, Ge | Gt | Le | Lt):
            yield item
    for part in get_args(annotation):
        yield from _limits(part, getattr(part, "__metadata__", ()))
