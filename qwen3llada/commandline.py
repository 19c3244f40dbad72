"""From a YAML file and a command line to a validated model, with errors of one line. Knows no section by name."""

import difflib
import json
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from qwen3llada.errors import InputError
from qwen3llada.section import StrictKinds, allowed_range, choices

Model = TypeVar("Model", bound=BaseModel)


class ParamsError(InputError):
    """A parameter is unknown, of a wrong type, out of range, or contradicts another. The text is one line."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping in `path`, read as YAML 1.2: DVC writes `1e-05`, which YAML 1.1 takes for a string.

    Raises: `ParamsError` if the file is missing, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ParamsError(f"{path}: no such parameter file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: cannot be read: {error}") from error
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or number that Python does not have
        raise ParamsError(f"{path}: not valid YAML: {_cut(' '.join(str(error).split()), 300)}") from error
    if not isinstance(tree, dict):
        raise ParamsError(f"{path}: must hold a mapping of sections, given {type(tree).__name__}")
    return tree


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over` in place of its own; mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def validated(cls: type[Model], tree: dict[str, Any], where: str) -> Model:
    """`cls` filled from `tree`; `where` names the source in an error. Raises `ParamsError`."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise ParamsError(f"{where}: {_first_error(error, cls)}") from error


def with_default(instance: BaseModel, name: str) -> tuple[Any, Any]:
    """(type, field) of one field of `instance`: its constraints and description, its present value as default."""
    field = type(instance).model_fields[name]
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation  # type: ignore
    return kind, Field(getattr(instance, name), description=field.description)


def parse_environment(fields: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Values of `fields` (name -> (type, field)): defaults, then the variables PREFIX_NAME, PREFIX_NAME__KEY.

    Raises: `ParamsError`.
    """
    config = SettingsConfigDict(
        env_prefix=prefix,
        env_nested_delimiter="__",
        extra="forbid",
        allow_inf_nan=False,
        nested_model_default_partial_update=True,
        protected_namespaces=(),
    )
    base = type("EnvironmentBase", (StrictKinds, BaseSettings), {"model_config": config, "__module__": __name__})
    settings: Any = create_model("Environment", __base__=base, **fields)
    try:
        return settings().model_dump()
    except SettingsError as error:
        raise ParamsError(_environment_message(error, prefix)) from error
    except ValidationError as error:
        raise ParamsError(f"environment: {prefix}…: {_first_error(error, settings)}") from error


class _FlagsAlone(BaseSettings):
    """The base of the settings that flags fill: pydantic-settings would look for them in the environment, too."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def parse_flags(fields: dict[str, Any], argv: Sequence[str], *, doc: str) -> dict[str, Any]:
    """Values of `fields` (name -> (type, field)): defaults, then the flags in `argv`.

    Raises: `ParamsError`; `SystemExit` after `--help`.
    """
    config = SettingsConfigDict(
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_parse_none_str="null",  # as in YAML
        cli_prog_name=_program(),
        extra="forbid",
        allow_inf_nan=False,
        nested_model_default_partial_update=True,
        protected_namespaces=(),
    )
    base = type("StageBase", (StrictKinds, _FlagsAlone), {"model_config": config, "__module__": __name__})
    settings: Any = create_model("Stage", __base__=base, __doc__=doc, **fields)
    lists, rest = _take_lists(fields, argv)
    try:
        source: Any = CliSettingsSource(
            settings, cli_parse_args=_plain_values(settings, rest), add_argument_method=_with_choices(settings)
        )
        return settings(_cli_settings_source=source, **lists).model_dump()
    except SettingsError as error:
        raise ParamsError(_flag_message(error, settings)) from error
    except ValidationError as error:
        raise ParamsError(f"command line: {_first_error(error, settings)}") from error


def _with_choices(settings: type[BaseModel]) -> Callable[..., Any]:
    """argparse's `add_argument`, with the names that a knob takes in place of `str` in `--help`."""
    names = {f"--{flag}": choices(field) for flag, field in _flag_fields(settings)}

    def add_argument(parser: ArgumentParser, *flags: str, **options: Any) -> Any:
        if allowed := next((names[flag] for flag in flags if names.get(flag)), None):
            options["metavar"] = f"{{{','.join(allowed)}}}"
        return parser.add_argument(*flags, **options)

    return add_argument


def _take_lists(fields: dict[str, Any], argv: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Values of the repeatable flags, and the other arguments.

    `--prompt TEXT` takes TEXT as it is, once a flag; pydantic-settings would split it at commas and read it as JSON.
    """
    lists = {f"--{name}": name for name, (annotation, _) in fields.items() if annotation == list[str]}
    taken: dict[str, list[str]] = {}
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag not in lists:
            rest.append(argument)
            continue
        text = value if equals else next(arguments, None)
        if text is None:
            raise ParamsError(f"command line: argument {flag}: expected one argument")
        taken.setdefault(lists[flag], []).append(text)
    return taken, rest


def _plain_values(settings: type[BaseModel], argv: Sequence[str]) -> list[str]:
    """The arguments as pydantic-settings knows them.

    `--flag true` and `--flag=false` become `--flag` and `--no-flag`; a list of numbers becomes JSON.
    Raises: `ParamsError` for any other value of the two.
    """
    kinds = {f"--{name}": kind for name, kind in _flags(settings)}
    rest: list[str] = []
    arguments = list(argv)
    while arguments:
        flag, equals, value = arguments.pop(0).partition("=")
        kind = kinds.get(flag)
        switch, numbers = kind in (bool, bool | None), _is_numbers(kind)
        if (switch or numbers) and not equals and arguments and not arguments[0].startswith("--"):
            equals, value = "=", arguments.pop(0)
        if switch and equals:
            if value not in ("true", "false"):
                raise ParamsError(f"command line: {flag}: given {_cut(repr(value), 80)}, must be true or false")
            rest.append(flag if value == "true" else f"--no-{flag[2:]}")
        elif numbers and equals:
            rest.append(f"{flag}={_numbers(value, flag, allowed_range(settings, flag[2:].split('.')))}")
        else:
            rest.append(flag + equals + value)
    return rest


def _is_numbers(kind: Any) -> bool:
    """Whether a knob is a tuple, and not one of texts; `Annotated[str, …]` is a text, too."""
    return get_origin(kind) is tuple and not any(str in (part, *get_args(part)) for part in get_args(kind))


def _numbers(value: str, flag: str, limits: str | None) -> str:
    """`0.9,0.95`, with or without brackets, as JSON."""
    inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        return json.dumps([float(part) for part in inside.split(",")], allow_nan=False)
    except ValueError as error:  # a word, or NaN or an infinity
        each = f", each {limits}" if limits else ""
        given = _cut(repr(value), 80)
        raise ParamsError(f"command line: {flag}: given {given}, must be numbers{each}, as 0.9,0.95") from error


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else "stage"


def _first_error(error: ValidationError, cls: type[BaseModel]) -> str:
    """`key: what was given, what is allowed` of the first error, and how many more there are."""
    first, *others = error.errors(include_url=False)
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(cls, first["loc"][:-1])
        return f"{key}: unknown key{_nearest(str(first['loc'][-1]), known)}; allowed: {', '.join(sorted(known))}{more}"
    if first["type"] == "missing":
        return f"{key}: missing, must be given{more}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f"given {_cut(repr(first['input']), 80)}, "
    place = f"{key}: " if key else ""  # two settings that contradict each other have no key of their own
    limits = None if first["type"] == "value_error" else allowed_range(cls, first["loc"])
    allowed = f"; allowed: {limits}" if limits else ""
    return f"{place}{given}{message[0].lower()}{message[1:]}{allowed}{more}"


def _cut(text: str, length: int) -> str:
    """A text of any length, such as a number of thousands of digits, in so many characters."""
    return text if len(text) <= length else f"{text[:length]}… ({len(text):,} characters)"


def _known_keys(cls: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    for part in loc:
        by_alias = {field.alias or name: field for name, field in cls.model_fields.items()}
        annotation = by_alias[str(part)].annotation if str(part) in by_alias else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        cls = annotation
    return [field.alias or name for name, field in cls.model_fields.items()]


def _nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def _environment_message(error: SettingsError, prefix: str) -> str:
    """One line for a variable whose text is no JSON where a list or a section needs it."""
    unread = re.fullmatch(r'error parsing value for field "(\w+)" from source "EnvSettingsSource"', str(error))
    if not unread:
        return f"environment: {prefix}…: {error}"
    start = f"{prefix}{unread[1]}".upper()
    given = ", ".join(f"{k}={_cut(v, 80)!r}" for k, v in os.environ.items() if k.upper().startswith(start))
    return f"environment: given {given}, must be JSON where it is a list or a section, as [0.9, 0.95]"


def _flag_message(error: SettingsError, settings: type[BaseModel]) -> str:
    """One line for what no field was asked about: an unknown flag, a missing value."""
    text = str(error).removeprefix("error parsing CLI: ")
    unknown = text.removeprefix("unrecognized arguments: ")
    if unknown == text:
        return f"command line: {text}"
    word = unknown.split()[0]
    if not word.startswith("-"):
        return f"command line: {word}: unknown argument, not a flag nor the value of one"
    flag = word.lstrip("-").split("=")[0]
    flags = _flag_names(settings)
    return f"command line: --{flag}: unknown flag{_nearest(flag, flags, '--')}; allowed: {', '.join(flags)}"


def _flag_names(cls: type[BaseModel]) -> list[str]:
    return [name for name, _ in _flags(cls)]


def _flags(cls: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every flag."""
    return ((name, field.annotation) for name, field in _flag_fields(cls))


def _flag_fields(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, field) of every flag."""
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _flag_fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field
