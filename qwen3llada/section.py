"""The base of every parameter section. A section lives in the module that it configures; `params.py` composes them."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen, validated group of knobs. Unknown keys, wrong types and non-finite numbers are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )
