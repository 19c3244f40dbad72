"""Variants of the pipeline, each in a clone of the workspace and saved as a DVC experiment of the workspace.

The workspace is only read. `dvc exp run --temp` does not suffice: during setup it changes and restores params.yaml in
the workspace, so another run would see the change, and a kill at that moment would leave it.
"""

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.commands import output_of
from flows.graph import read_inputs
from flows.snapshot import copy_files, digests, hidden_files, visible_files
from flows.workspace import check_parameters, put_parameters

CLONES = Path(".dvc/tmp/sweep")
MADE_OF = "made-of"  # in the clone's .git folder
# A variant's name is also the name of a folder, a git reference and a DVC experiment.
NAME = re.compile(r"(?!.*\.\.)(?!.*\.lock$)[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}(?<!\.)")
# Settings for commits, and those that decide whether git considers files unchanged.
GIT_SETTINGS = ("user.name", "user.email", "core.autocrlf", "core.eol", "core.fileMode", "core.attributesFile")


@dataclass(frozen=True)
class Variant:
    """One cell of the grid: name of the experiment, and `section.key=value` overrides."""

    name: str
    overrides: tuple[str, ...]

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"name={self.name!r} must be 1 to 128 letters, digits, _, - and single dots, beginning with a letter,"
                " a digit or _: it names a folder, a git reference and an experiment"
            )


def expand(grid: dict[str, list[str]], prefix: str) -> list[Variant]:
    """All combinations of a grid's axes, the last axis varying fastest.

    An axis `a.key,b.key: [x, y]` sets several keys to the same value. A variant is named after its values.
    Raises: ValueError for an empty grid or axis, a parameter in two axes, variants with equal names, or a name that no
        folder may have.
    """
    if not grid or not all(grid.values()):
        raise ValueError(f"grid={grid} must have an axis, and each axis a value")
    keys = [key.strip() for keys in grid for key in keys.split(",")]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"grid={grid} must have each parameter once, given twice: {', '.join(sorted(twice))}")
    variants = []
    for values in itertools.product(*grid.values()):
        name = "-".join([prefix, *(_word(str(value)) for value in values)])
        pairs = zip(grid, values, strict=True)
        overrides = (f"{key.strip()}={value}" for keys, value in pairs for key in keys.split(","))
        variants.append(Variant(name, tuple(overrides)))
    names = [variant.name for variant in variants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"grid={grid} must give variants of different names, given twice: {', '.join(sorted(twice))}")
    return variants


def clone(root: Path, variant: Variant) -> Path:
    """A clone of the workspace at `root`, including changes and untracked files, with the variant's parameters.

    Files are copied byte for byte, also ignored files that a variant reads. DVC's cache is shared. A clone left by an
    interrupted sweep is reused if it was made of the same files and parameters, because it contains checkpoints.
    Nothing is left of a clone that cannot be made.

    Raises: ValueError for what a clone cannot have or would find elsewhere; `StageFailedError` naming a wrong key, or a
        folder that the project must not replace; RuntimeError with git's or dvc's message.
    """
    visible = visible_files(root)
    revision = output_of(root, "git", "rev-parse", "HEAD").strip()
    made_of = {"revision": revision, "files": digests(root, visible, links=True), "overrides": list(variant.overrides)}
    path = root / CLONES / variant.name
    stamp = path / ".git" / MADE_OF
    if stamp.exists():
        hidden = _hidden(root, path, visible)
        if json.loads(stamp.read_text()) == made_of | {"hidden": digests(root, hidden, links=False)}:
            return path
    if path.exists():
        shutil.rmtree(path)
    try:
        hidden = _fill(root, path, revision, visible, variant.overrides)
    except Exception:
        shutil.rmtree(path, ignore_errors=True)
        raise
    stamp.write_text(json.dumps(made_of | {"hidden": digests(root, hidden, links=False)}))
    return path


def _fill(root: Path, path: Path, revision: str, visible: Collection[str], overrides: Sequence[str]) -> list[str]:
    """Make the clone at `path`. Returns the files in it that git does not see."""
    output_of(root, "git", "clone", "--quiet", "--no-tags", "--no-checkout", str(root.resolve()), str(path.resolve()))
    output_of(path, "git", "update-ref", "--no-deref", "HEAD", revision)
    copy_files(root, visible, path, links=True)
    _configure(root, path)
    output_of(path, "git", "read-tree", "HEAD")
    put_parameters(None, overrides, path)
    hidden = _hidden(root, path, visible)
    copy_files(root, hidden, path, links=False)
    check_parameters(path)
    return hidden


def save(path: Path, variant: Variant, stages: Iterable[str]) -> None:
    """Save the clone as an experiment of the workspace, replacing one of the same name, and remove the clone.

    Args:
        stages: stages whose outputs exist; dvc would report the others' as missing.
    """
    output_of(path, sys.executable, "-m", "dvc", "exp", "save", "--force", "--name", variant.name, *stages)
    output_of(path, sys.executable, "-m", "dvc", "exp", "push", "--force", "--no-cache", "origin", variant.name)
    shutil.rmtree(path)


def _configure(root: Path, path: Path) -> None:
    """Copy the workspace's dvc and git settings to the clone, and set its cache."""
    if (local := root / ".dvc/config.local").exists():
        shutil.copy2(local, path / ".dvc/config.local")
    cache = output_of(root, sys.executable, "-m", "dvc", "cache", "dir").strip()
    output_of(path, sys.executable, "-m", "dvc", "--quiet", "cache", "dir", "--local", str((root / cache).resolve()))
    for key in GIT_SETTINGS:
        done = subprocess.run(["git", "config", key], cwd=root, capture_output=True, text=True)
        if value := done.stdout.strip():
            output_of(path, "git", "config", key, value)
    for name in ("attributes", "exclude"):
        given = root / output_of(root, "git", "rev-parse", "--git-path", f"info/{name}").strip()
        if given.exists():
            (path / ".git/info").mkdir(exist_ok=True)
            shutil.copy2(given, path / ".git/info" / name)


def _hidden(root: Path, path: Path, visible: Collection[str]) -> list[str]:
    """Files of `root` that the stages read with the clone's parameters and that git does not see."""
    return hidden_files(root, read_inputs(path), visible)


def _word(value: str) -> str:
    """A value as part of a name that is valid for git and DVC."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", value).strip("_") or "none"
