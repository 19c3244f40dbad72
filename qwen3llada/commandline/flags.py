"""Parsing of a command line into the values of a model's fields."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from qwen3llada.commandline.messages import ParamsError, cut, first_error, flag_fields, flag_message, flag_types
from qwen3llada.section import StrictKinds, allowed_range, choices, plain_types


class _FlagsAlone(BaseSettings):
    """Base class of settings filled by flags only. pydantic-settings would also read environment variables."""

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
    """Values of `fields` (name -> (type, field)): the defaults, overridden by the flags in `argv`.

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
        raise ParamsError(flag_message(error, settings)) from error
    except ValidationError as error:
        raise ParamsError(f"command line: {first_error(error, settings)}") from error


def refuse_unread(fields: dict[str, Any], argv: Sequence[str], unread: Mapping[str, str]) -> None:
    """Raises `ParamsError` if `argv` has a flag that the call does not read. `unread`: name of the flag -> why."""
    _, rest = _take_lists(fields, argv)
    given = {argument.partition("=")[0] for argument in rest}
    if found := [name for name in unread if f"--{name}" in given]:
        named = ", ".join(f"--{name}" for name in found)
        raise ParamsError(f"command line: {named} must be left out {unread[found[0]]}: no effect there")


def _with_choices(settings: type[BaseModel]) -> Callable[..., Any]:
    """argparse's `add_argument`, which shows in `--help` the names that a knob accepts instead of `str`."""
    names = {f"--{flag}": choices(field) for flag, field in flag_fields(settings)}

    def add_argument(parser: ArgumentParser, *flags: str, **options: Any) -> Any:
        if allowed := next((names[flag] for flag in flags if names.get(flag)), None):
            options["metavar"] = f"{{{','.join(allowed)}}}"
        return parser.add_argument(*flags, **options)

    return add_argument


def _take_lists(fields: dict[str, Any], argv: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Values of the repeatable flags, and the remaining arguments.

    `--prompt TEXT` takes TEXT literally; pydantic-settings would split it at commas or read it as JSON.
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
    """Rewrite arguments to the forms that pydantic-settings accepts.

    `--flag true` and `--flag=false` become `--flag` and `--no-flag`; lists of numbers become JSON. Lists of objects
    are JSON already.
    Raises: `ParamsError` for other values of such flags.
    """
    kinds = {f"--{name}": kind for name, kind in flag_types(settings)}
    rest: list[str] = []
    arguments = list(argv)
    while arguments:
        flag, equals, value = arguments.pop(0).partition("=")
        kind = kinds.get(flag)
        switch, numbers, objects = kind in (bool, bool | None), _is_numbers(kind), _is_objects(kind)
        if (switch or numbers or objects) and not equals and arguments and not arguments[0].startswith("--"):
            equals, value = "=", arguments.pop(0)
        if switch and equals:
            if value not in ("true", "false"):
                raise ParamsError(f"command line: {flag}: given {cut(repr(value), 80)}, must be true or false")
            rest.append(flag if value == "true" else f"--no-{flag[2:]}")
        elif numbers and equals:
            rest.append(f"{flag}={_numbers(value, flag, allowed_range(settings, flag[2:].split('.')))}")
        elif objects and equals:
            rest.append(f"{flag}={_objects(value, flag)}")
        else:
            rest.append(flag + equals + value)
    return rest


def _is_numbers(kind: Any) -> bool:
    """Whether a knob is a tuple of numbers."""
    return get_origin(kind) is tuple and plain_types(kind) <= {int, float}


def _is_objects(kind: Any) -> bool:
    """Whether a knob is a list or tuple of sections or dicts."""
    first = next(iter(get_args(kind)), None) if get_origin(kind) in (list, tuple) else None
    return get_origin(first) is dict or (isinstance(first, type) and issubclass(first, dict | BaseModel))


def _numbers(value: str, flag: str, limits: str | None) -> str:
    """Convert `0.9,0.95`, with or without brackets, to JSON."""
    inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        return json.dumps([float(part) for part in inside.split(",")], allow_nan=False)
    except ValueError as error:  # a word, NaN or an infinity
        each = f", each {limits}" if limits else ""
        given = cut(repr(value), 80)
        raise ParamsError(f"command line: {flag}: given {given}, must be numbers{each}, as 0.9,0.95") from error


def _objects(value: str, flag: str) -> str:
    """`value`, a JSON list of objects, as pydantic-settings can read it. The objects are validated with the model."""
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, list) or not all(isinstance(part, dict) for part in parsed):
        given = cut(repr(value), 80)
        raise ParamsError(f"command line: {flag}: given {given}, must be a JSON list of objects, as '[{{\"key\": 1}}]'")
    plain = json.dumps(parsed, ensure_ascii=False)
    if "\\" in plain:  # pydantic-settings doubles backslashes in lists
        raise ParamsError(
            f"command line: {flag}: texts must hold no quotes, backslashes or control characters; write such a list"
            " into params.yaml"
        )
    return plain


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else "stage"
