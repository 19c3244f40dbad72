"""One-line messages about a wrong parameter: the key, what was given, what is allowed."""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from qwen3llada.errors import InputError
from qwen3llada.section import allowed_range, is_secret

MOST_NAMED = 40  # flags that a message lists; `--help` lists more


class ParamsError(InputError):
    """A parameter is unknown, of the wrong type, out of range, or contradicts another. The message is one line."""


def first_error(error: ValidationError, cls: type[BaseModel]) -> str:
    """`key: what was given, what is allowed` for the first error, and the number of others."""
    first, *others = error.errors(include_url=False)
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(cls, first["loc"][:-1])
        return f"{key}: unknown key{_nearest(str(first['loc'][-1]), known)}; allowed: {', '.join(sorted(known))}{more}"
    if first["type"] == "missing":
        return f"{key}: missing, must be given{more}"
    message = first["msg"].removeprefix("Value error, ")
    silent = first["type"] == "value_error" or _secret(cls, first["loc"])
    given = "" if silent else f"given {cut(repr(first['input']), 80)}, "
    place = f"{key}: " if key else ""  # an error about two contradicting settings has no key
    limits = None if first["type"] == "value_error" else allowed_range(cls, first["loc"])
    allowed = f"; allowed: {limits}" if limits else ""
    return f"{place}{given}{message[0].lower()}{message[1:]}{allowed}{more}"


def environment_message(error: SettingsError, prefix: str) -> str:
    """One line for a variable that is not JSON although its knob is a list or section."""
    unread = re.fullmatch(r'error parsing value for field "(\w+)" from source "EnvSettingsSource"', str(error))
    if not unread:
        return f"environment: {prefix}…: {error}"
    start = f"{prefix}{unread[1]}".upper()
    given = ", ".join(f"{k}={cut(v, 80)!r}" for k, v in os.environ.items() if k.upper().startswith(start))
    return f"environment: given {given}, must be JSON where it is a list or a section, as [0.9, 0.95]"


def flag_message(error: SettingsError, settings: type[BaseModel]) -> str:
    """One line for errors outside the fields: an unknown flag, a missing value."""
    text = str(error).removeprefix("error parsing CLI: ")
    unknown = text.removeprefix("unrecognized arguments: ")
    if unknown == text:
        return f"command line: {text}"
    word = unknown.split()[0]
    if not word.startswith("-"):
        return f"command line: {word}: unknown argument, not a flag nor the value of one"
    flag = word.lstrip("-").split("=")[0]
    flags = _flag_names(settings)
    allowed = f"allowed: {', '.join(flags)}" if len(flags) <= MOST_NAMED else f"--help lists the {len(flags)} flags"
    return f"command line: --{flag}: unknown flag{_nearest(flag, flags, '--')}; {allowed}"


def cut(text: str, length: int) -> str:
    """Shorten a text, such as a number with thousands of digits, to `length` characters."""
    return text if len(text) <= length else f"{text[:length]}… ({len(text):,} characters)"


def _nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def _known_keys(cls: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    for part in loc:
        by_alias = {field.alias or name: field for name, field in cls.model_fields.items()}
        annotation = by_alias[str(part)].annotation if str(part) in by_alias else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        cls = annotation
    return [field.alias or name for name, field in cls.model_fields.items()]


def _secret(cls: type[BaseModel], loc: Sequence[int | str]) -> bool:
    """Whether the value at `loc` must not be printed."""
    for part in loc:
        by_key = {field.alias or name: field for name, field in cls.model_fields.items()}
        kind = by_key[str(part)].annotation if str(part) in by_key else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return is_secret(kind)
        cls = kind
    return False


def _flag_names(cls: type[BaseModel]) -> list[str]:
    return [name for name, _ in flag_types(cls)]


def flag_types(cls: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of each flag."""
    return ((name, field.annotation) for name, field in flag_fields(cls))


def flag_fields(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, field) of each flag."""
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from flag_fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field
