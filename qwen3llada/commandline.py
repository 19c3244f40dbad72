"""From a YAML file and a command line to a validated model, with errors of one line. Knows no section by name."""

import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, create_model
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from qwen3llada.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


class ParamsError(InputError):
    """A parameter is unknown, of a wrong type, out of range, or contradicts another. The text is one line."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping in `path`, read as YAML 1.2: DVC writes `1e-05`, which YAML 1.1 takes for a string.

    Raises: `ParamsError` if the file is missing, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise ParamsError(f"{path}: no such parameter file")
    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
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
    field = type(instance).model_fields[name]._copy()
    field.default, field.default_factory = getattr(instance, name), None
    field.alias = field.validation_alias = field.serialization_alias = None
    return field.annotation, field


def parse_environment(fields: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Values of `fields` (name -> (type, field)): defaults, then the variables PREFIX_NAME, PREFIX_NAME__KEY.

    Raises: `ParamsError`.
    """
    config = SettingsConfigDict(
        env_prefix=prefix,
        env_nested_delimiter="__",
        extra="forbid",
        nested_model_default_partial_update=True,
        protected_namespaces=(),
    )
    base = type("EnvironmentBase", (BaseSettings,), {"model_config": config, "__module__": __name__})
    settings: Any = create_model("Environment", __base__=base, **fields)
    try:
        return settings().model_dump()
    except SettingsError as error:
        raise ParamsError(f"environment: {prefix}…: {error}") from error
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
        nested_model_default_partial_update=True,
        protected_namespaces=(),
    )
    base = type("StageBase", (_FlagsAlone,), {"model_config": config, "__module__": __name__})
    settings: Any = create_model("Stage", __base__=base, __doc__=doc, **fields)
    lists, rest = _take_lists(fields, argv)
    try:
        return settings(_cli_parse_args=_without_truth_values(settings, rest), **lists).model_dump()
    except SettingsError as error:
        raise ParamsError(f"command line: {_argparse_message(error, settings)}") from error
    except ValidationError as error:
        raise ParamsError(f"command line: {_first_error(error, settings)}") from error


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


def _without_truth_values(settings: type[BaseModel], argv: Sequence[str]) -> list[str]:
    """`--flag true` and `--flag=false` as `--flag` and `--no-flag`, which are all that pydantic-settings knows."""
    switches = {f"--{name}" for name, kind in _flags(settings) if kind in (bool, bool | None)}
    rest: list[str] = []
    arguments = list(argv)
    while arguments:
        flag, equals, value = arguments.pop(0).partition("=")
        if flag in switches and not equals and arguments and arguments[0] in ("true", "false"):
            equals, value = "=", arguments.pop(0)
        if flag in switches and value in ("true", "false"):
            rest.append(flag if value == "true" else f"--no-{flag[2:]}")
        else:
            rest.append(flag + equals + value)
    return rest


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
    given = "" if first["type"] == "value_error" else f"given {first['input']!r}, "
    place = f"{key}: " if key else ""  # two settings that contradict each other have no key of their own
    return f"{place}{given}{message[0].lower()}{message[1:]}{more}"


def _known_keys(cls: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    for part in loc:
        by_alias = {field.alias or name: field for name, field in cls.model_fields.items()}
        annotation = by_alias[str(part)].annotation if str(part) in by_alias else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        cls = annotation
    return [field.alias or name for name, field in cls.model_fields.items()]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _argparse_message(error: SettingsError, settings: type[BaseModel]) -> str:
    text = str(error).removeprefix("error parsing CLI: ")
    unknown = text.removeprefix("unrecognized arguments: ")
    if unknown == text:
        return text
    flag = unknown.split()[0].lstrip("-").split("=")[0]
    flags = _flag_names(settings)
    return f"--{flag}: unknown flag{_nearest(flag, flags)}; allowed: {', '.join(flags)}"


def _flag_names(cls: type[BaseModel]) -> list[str]:
    return [name for name, _ in _flags(cls)]


def _flags(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every flag."""
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _flags(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind
