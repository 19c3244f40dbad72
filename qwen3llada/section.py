"""The base of every parameter section. A section lives in the module that it configures; `params.py` composes them."""

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo


class Section(BaseModel):
    """A frozen, validated group of knobs. Unknown keys, wrong types and non-finite numbers are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )


def one_of(registry: Mapping[str, Any], *, but: Collection[str] = ()) -> AfterValidator:
    """For the type of a knob, `Annotated[str, one_of(REGISTRY)]`: its value is a name in `registry`, and not in `but`.

    The registry is read when a value is validated, so that a new entry is all that a new value takes.
    """

    def check(value: str, info: ValidationInfo) -> str:
        allowed = [name for name in registry if name not in but]
        if value not in allowed:
            raise ValueError(f"{info.field_name}={value!r} must be one of {', '.join(allowed)}")
        return value

    return AfterValidator(check)
