"""From nested mappings and environment variables to a validated model."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from qwen3llada.commandline.messages import ParamsError, environment_message, first_error
from qwen3llada.section import StrictKinds

Model = TypeVar("Model", bound=BaseModel)


def validated(cls: type[Model], tree: dict[str, Any], where: str) -> Model:
    """`cls` filled from `tree`. `where` names the source in errors. Raises `ParamsError`."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise ParamsError(f"{where}: {first_error(error, cls)}") from error


def with_default(instance: BaseModel, name: str) -> tuple[Any, Any]:
    """(type, field) of one field of `instance`: same constraints and description, current value as default."""
    field = type(instance).model_fields[name]
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation  # type: ignore
    return kind, Field(getattr(instance, name), description=field.description)


def parse_environment(fields: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Values of `fields` (name -> (type, field)): the defaults, overridden by PREFIX_NAME and PREFIX_NAME__KEY.

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
        raise ParamsError(environment_message(error, prefix)) from error
    except ValidationError as error:
        raise ParamsError(f"environment: {prefix}…: {first_error(error, settings)}") from error
