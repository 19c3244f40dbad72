"""Knobs from environment variables: the known variables, and their rejection under DVC. Independent of the sections.

The variable of a knob is `QWEN3LLADA_` and the knob's keys in params.yaml, in capitals, joined by two underscores:
`QWEN3LLADA_SEED`, `QWEN3LLADA_PRETRAIN__OPTIM__LR`. It is the same variable in every stage.
"""

import difflib
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import BaseModel

from qwen3llada.commandline import ParamsError
from qwen3llada.section import is_secret

PREFIX = "QWEN3LLADA_"
TRACEBACK = f"{PREFIX}TRACEBACK"
NO_KNOBS = {TRACEBACK}  # have the prefix but change no result
DVC_STAGE = "DVC_STAGE"  # set by DVC to the name of the stage that it runs


class KnobVariable(NamedTuple):
    """A variable that is set, the keys of its knob, and whether nobody may see its value."""

    name: str
    keys: tuple[str, ...]
    secret: bool


def knob_variables(cls: type[BaseModel], environ: Mapping[str, str]) -> list[KnobVariable]:
    """The variables in `environ` that set a knob of `cls`, the model of all parameters.

    Raises: `ParamsError` for a variable with our prefix that names no knob, and for any such variable under DVC:
    dvc.lock would record the value in params.yaml although the stage ran with another.
    """
    given = sorted(name for name in environ if name.upper().startswith(PREFIX) and name.upper() not in NO_KNOBS)
    if given and (stage := environ.get(DVC_STAGE)):
        raise ParamsError(
            f"environment: {', '.join(given)} must not be set while DVC runs the stage {stage}: dvc.lock would record"
            " another value; unset it and put the value into params.yaml"
        )
    known = {variable(keys): (keys, secret) for keys, secret in _knobs(cls)}
    for name in given:
        if name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ParamsError(
                f"environment: {name}: unknown variable{hint}; allowed: {PREFIX} and a knob's keys in params.yaml, in"
                f" capitals, joined by __"
            )
    return [KnobVariable(name, *known[name.upper()]) for name in given]


def announce(variables: list[KnobVariable], environ: Mapping[str, str], sections: list[str]) -> None:
    """Print to stderr the effect of each variable on a stage that reads `sections` of params.yaml."""
    for name, keys, secret in variables:
        if keys[0] in sections:
            value = "" if secret else f"={environ[name]}"
            print(f"environment: {name}{value} sets {'.'.join(keys)}", file=sys.stderr)
        else:
            print(f"environment: {name} has no effect: this stage does not read {keys[0]}", file=sys.stderr)


def variable(keys: tuple[str, ...]) -> str:
    """Name of the variable for the knob at `keys`."""
    return PREFIX + "__".join(keys).upper()


def _knobs(cls: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    for name, field in cls.model_fields.items():
        keys, kind = (*above, field.alias or name), field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _knobs(kind, keys)
        else:
            yield keys, is_secret(kind)
