"""Checks of direct stage calls against DVC's pipeline: outputs that would be replaced, inputs that are missing.

`dvc.yaml` names the inputs and outputs of every stage; `dvc.lock` names the outputs of the last run. When DVC itself
runs the stage, it takes care of both. Without a `dvc.yaml` nothing is checked. `post_training/dvc.yaml` is a second
pipeline, which `dvc repro` leaves out.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from qwen3llada.commandline import read_yaml
from qwen3llada.errors import InputError
from qwen3llada.knob_variables import DVC_STAGE
from qwen3llada.section import Section

PIPELINE, LOCK = Path("dvc.yaml"), Path("dvc.lock")
ASIDE = Path("post_training")  # the folder of the second pipeline, with files of the same names
OUTPUTS = ("outs", "metrics", "plots")
TEMPLATE = re.compile(r"\$\{([\w.]+)\}")
OPTIONAL = {Path("data/raw/SOURCE.json")}  # inputs that a stage can do without: a model's card then names no licences
SHOWN = 6  # outputs named in an error


class Request(Section):
    """Options of a single call of a stage, which are not in params.yaml."""

    force: bool = Field(False, description="Replace outputs that DVC tracks, also when this is no run of DVC's")

    def files(self) -> dict[str, Path] | None:
        """Files that this call writes instead of the stage's outputs, by flag; None: it writes those outputs."""
        return None

    def reads(self) -> list[str] | None:
        """Inputs of this call, in the form of dvc.yaml's `deps`, instead of the stage's own; None: the stage's own."""
        return None

    def unread(self) -> dict[str, str]:
        """Knobs of the stage without effect in this call, and the reason. As flags they are refused."""
        return {}


def check_inputs(stage: str, used: Mapping[str, Any], asked: Request) -> None:
    """Check that the inputs of a direct call of `stage` that other stages make exist. `used`: as in `check_tracked`.

    Raises: InputError in one line that says which stages to run first.
    """
    if os.environ.get(DVC_STAGE) or not PIPELINE.is_file():
        return
    stages = _stages()
    reads = asked.reads()
    needed = _filled((stages.get(_address(stage)) or {}).get("deps") or [] if reads is None else reads, used).values()
    makers: dict[str, list[Path]] = {}
    for name, entry in stages.items():
        made = set(_filled(outputs(entry), used).values())
        if found := [p for p in needed if p not in OPTIONAL and not p.exists() and made & {p, *p.parents}]:
            makers[name] = found
    if makers:
        lacking = ", ".join(path.as_posix() for paths in makers.values() for path in paths)
        raise InputError(f"{lacking}: not there yet; first run dvc repro {' '.join(makers)}")


def check_tracked(
    stage: str, own: str | None, used: Mapping[str, Any], given: Mapping[str, Any], asked: Request
) -> None:
    """Check that a direct call of `stage` replaces nothing that DVC tracks. Nothing is written.

    Args:
        own: the section whose keys are plain flags of the stage, or None.
        used: all parameters of this call. given: all parameters in params.yaml.

    Raises: InputError in one line with the existing outputs and the alternatives.
    """
    files = asked.files()
    if asked.force or os.environ.get(DVC_STAGE) or not PIPELINE.is_file() or files == {}:
        return
    stages, address = _stages(), _address(stage)
    writes = _filled(outputs(stages.get(address)), used) if files is None else files
    tracked = {path for entry in stages.values() for path in _filled(outputs(entry), given).values()} | set(_locked())
    there = {Path(os.path.realpath(path)) for path in tracked if path.exists()}
    lost = {text: path for text, path in writes.items() if any(_touch(path, other) for other in there)}
    if lost:
        names = [path.as_posix() for path in lost.values()]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        ways = [*_other_paths(lost, own), "--force", *([] if files else [f"run dvc repro {address}"])]
        raise InputError(
            f"{', '.join(names[:SHOWN])}{more}: tracked by DVC, this call would replace what is there; give"
            f" {', or '.join(ways)}"
        )


def changed(stage: str, used: Mapping[str, Any]) -> bool:
    """Whether the last run of `stage` had other parameters than `used`, or there was none."""
    entry = (read_yaml(LOCK).get("stages") or {}).get(stage) if LOCK.is_file() else None
    recorded = ((entry or {}).get("params") or {}).get("params.yaml") or {}
    return not recorded or any(_at(used, key) != value for key, value in recorded.items())


def _stages() -> dict[str, Any]:
    """The entries of all stages by DVC's address."""
    found = dict(read_yaml(PIPELINE).get("stages") or {})
    if (ASIDE / PIPELINE).is_file():
        aside = read_yaml(ASIDE / PIPELINE).get("stages") or {}
        found |= {f"{ASIDE / PIPELINE}:{name}": entry for name, entry in aside.items()}
    return found


def _address(stage: str) -> str:
    """DVC's address of a stage: its name or, in the second pipeline, FILE:NAME."""
    aside = f"{ASIDE / PIPELINE}:{stage}"
    return aside if aside in _stages() else stage


def outputs(entry: Any) -> Iterator[str]:
    """The outputs in a stage's entry of dvc.yaml, with unresolved templates (`${sft.dst}`)."""
    for kind in OUTPUTS:
        for output in (entry or {}).get(kind) or []:
            yield from output if isinstance(output, dict) else [output]


def _filled(texts: Iterable[str], params: Mapping[str, Any]) -> dict[str, Path]:
    """Template in dvc.yaml -> path, without those whose parameters do not exist."""
    found = {text: TEMPLATE.sub(lambda key: _value(params, key[1]), text) for text in texts}
    return {text: Path(path) for text, path in found.items() if "\0" not in path}


def _value(params: Mapping[str, Any], key: str) -> str:
    """The parameter at a dotted key. If it does not exist: a NUL, which no path contains; DVC itself reports that."""
    value = _at(params, key)
    return "\0" if value is None else str(value)


def _at(params: Mapping[str, Any], key: str) -> Any:
    """The parameter at a dotted key; None if it does not exist."""
    value: Any = params
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _locked() -> Iterator[Path]:
    """The outputs of the last run. They stay tracked even if params.yaml has other paths now."""
    for lock in (LOCK, ASIDE / LOCK):
        if lock.is_file():
            for entry in (read_yaml(lock).get("stages") or {}).values():
                yield from (Path(output["path"]) for output in entry.get("outs") or [])


def _touch(path: Path, other: Path) -> bool:
    """Whether `path` equals `other` (which is resolved), contains it or lies in it."""
    real = Path(os.path.realpath(path))
    return real == other or real in other.parents or other in real.parents


def _other_paths(lost: Mapping[str, Path], own: str | None) -> list[str]:
    """One phrase with flags for other paths; [] unless flags cover all outputs that would be lost."""
    named = [re.findall(rf"\$\{{{own}\.([\w.]+)\}}|^--(\w+)$", text) for text in lost]
    flags = dict.fromkeys(f"--{knob or flag}" for found in named for knob, flag in found)
    return [f"another {' and '.join(flags)}"] if all(named) else []
