"""Parameters of a run: written to `params.yaml` before its first stage, and never while another run is active."""

import fcntl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from flows.environment import child_environment
from flows.outcome import Outcome, StageFailedError

IN_USE = Path(".dvc/tmp/flow.lock")
GIVEN = Path(".dvc/tmp/flow-parameters.yaml")
STEP = "parameters"


@contextmanager
def workspace(params: str | None, overrides: Sequence[str], root: Path = Path()) -> Iterator[None]:
    """Hold the workspace at `root` for a run, after writing its parameters to `params.yaml` and checking them.

    Runs that change no parameters share the workspace, because dvc locks single stages. A run that changes them must be
    alone when it starts. The parameters stay, because the outputs were made with them. `git restore params.yaml` undoes
    the change.

    Args:
        params: a parameter set (`configs/NAME.yaml`), or None.
        overrides: `section.key=value`, applied on top of `params`.
    Raises: `StageFailedError` of step "parameters": busy if another run is active; with the line that names a wrong
        key, in which case nothing is written; or as `check_parameters`.
    """
    if not (root / ".dvc").is_dir():
        raise ValueError(f"{root.resolve()} must be the root of a DVC project: it has no .dvc")
    (root / IN_USE).parent.mkdir(exist_ok=True)
    with open(root / IN_USE, "a") as file:
        if params or overrides:
            _lock(file, fcntl.LOCK_EX, "another run uses the workspace; this one would change its parameters")
            put_parameters(params, overrides, root)
        _lock(file, fcntl.LOCK_SH, "another run is changing the parameters of the workspace")
        check_parameters(root)
        yield


def _lock(file: Any, kind: int, message: str) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StageFailedError(STEP, Outcome("busy", 1, message)) from None


def put_parameters(params: str | None, overrides: Sequence[str], root: Path = Path()) -> None:
    """Write a parameter set and overrides to params.yaml in `root`.

    Raises: `StageFailedError` of step "parameters" with the line that names the wrong key. Nothing is written then.
    """
    file = Path(params) if params and not overrides else GIVEN
    if overrides:
        tree = _read(root / params) if params else {}
        for override in overrides:
            _set(tree, override)
        (root / GIVEN).parent.mkdir(exist_ok=True)
        with open(root / GIVEN, "w", encoding="utf-8") as stream:
            YAML().dump(tree, stream)
    _run_params(str(file), root)


def check_parameters(root: Path = Path()) -> None:
    """Check params.yaml in `root` and the folders that it replaces, because dvc removes these without asking.

    Raises: `StageFailedError` of step "parameters" with the line that names the wrong key or the folder.
    """
    _run_params("--check", root)


def _run_params(argument: str, root: Path) -> None:
    """Run the package's own command on parameters in a subprocess, because flows import nothing of the package."""
    command = [sys.executable, "-m", "qwen3llada.params", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment(), cwd=root)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise StageFailedError(STEP, Outcome("failed", done.returncode, _said(lines[-1])))


def _said(line: str) -> str:
    """The text of an error line. Overrides are passed in a file that users do not know, so its name is replaced."""
    return line.removeprefix("error: ").replace(f"{GIVEN}: ", "overrides: ", 1)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError, ValueError) as error:
        raise _refused(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict | None):
        raise _refused(f"{path}: must hold a mapping of sections, given {type(tree).__name__}")
    return tree or {}


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise _refused(f"{override!r} must be section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise _refused(f"{override!r}: {section} is a value, not a section")
    try:
        tree[last] = YAML(typ="safe", pure=True).load(value)
    except (YAMLError, ValueError) as error:  # ValueError: a date that Python lacks
        said = " ".join(str(getattr(error, "problem", None) or error).split())
        raise _refused(f"{override!r}: the value is not valid YAML: {said}") from error


def _refused(message: str) -> StageFailedError:
    return StageFailedError(STEP, Outcome("failed", 2, message))
