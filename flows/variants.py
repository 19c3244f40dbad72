"""Variants of the pipeline, each in a clone of the workspace, saved as DVC experiments of the workspace.

The workspace itself is only read. `dvc exp run --temp` would not do: it changes and restores params.yaml in the
workspace while it sets up, which another run, or a kill at that moment, would meet.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flows.environment import environment
from flows.workspace import put_parameters

CLONES = Path(".dvc/tmp/sweep")
MADE_OF = "made-of"  # in the clone's .git folder
# A variant's name is that of a folder, a git reference and a DVC experiment.
NAME = re.compile(r"(?!.*\.\.)(?!.*\.lock$)[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}(?<!\.)")


@dataclass(frozen=True)
class Variant:
    """One cell of the grid: the name of its experiment and its `section.key=value` overrides."""

    name: str
    overrides: tuple[str, ...]

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"name={self.name!r} must be 1 to 128 letters, digits, _, - and single dots, beginning with a letter,"
                " a digit or _: it names a folder, a git reference and an experiment"
            )


def expand(grid: dict[str, list[str]], prefix: str) -> list[Variant]:
    """All combinations of the axes of a grid, the last axis fastest.

    An axis `a.key,b.key: [x, y]` sets several keys to the same value. A variant is named after its values.
    Raises: ValueError for an empty grid or axis, two variants of one name, or a name that no folder may have.
    """
    if not grid or not all(grid.values()):
        raise ValueError(f"grid={grid} must have an axis, and each axis a value")
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
    """A clone of the workspace at `root`, changes and untracked files included, with the variant's parameters.

    It shares DVC's cache. A clone that an interrupted sweep has left is used again if it was made of the same files and
    parameters: its checkpoints are in it.
    Raises: `StageFailedError` naming a wrong key; RuntimeError with the text of git or dvc.
    """
    changes = run(root, "git", "diff", "--binary", "HEAD")
    others = run(root, "git", "ls-files", "-z", "--others", "--exclude-standard")
    untracked = [name for name in others.split("\0") if name]
    revision = run(root, "git", "rev-parse", "HEAD").strip()
    made_of = _fingerprint(root, revision, changes, untracked, variant)
    path = root / CLONES / variant.name
    stamp = path / ".git" / MADE_OF
    if stamp.exists() and stamp.read_text() == made_of:
        return path
    if path.exists():
        shutil.rmtree(path)
    run(root, "git", "clone", "--quiet", "--no-tags", "--no-checkout", str(root.resolve()), str(path.resolve()))
    run(path, "git", "checkout", "--quiet", "--detach", revision)
    if changes:
        run(path, "git", "apply", "--whitespace=nowarn", stdin=changes)
    for name in untracked:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, path / name, follow_symlinks=False)
    _configure(root, path)
    put_parameters(None, variant.overrides, path)
    stamp.write_text(made_of)
    return path


def save(path: Path, variant: Variant, stages: Iterable[str]) -> None:
    """Make what the clone holds an experiment of the workspace, replacing one of that name, and remove the clone.

    Args:
        stages: those whose outputs are there; dvc would miss the others'.
    """
    run(path, sys.executable, "-m", "dvc", "exp", "save", "--force", "--name", variant.name, *stages)
    run(path, sys.executable, "-m", "dvc", "exp", "push", "--force", "--no-cache", "origin", variant.name)
    shutil.rmtree(path)


def run(folder: Path, *command: str, stdin: str | None = None) -> str:
    """Standard output of a command in `folder`. Raises: RuntimeError with what it said on standard error."""
    done = subprocess.run(
        command, cwd=folder, env=environment(), input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise RuntimeError(f"{' '.join(command[:4])}: {said}")
    return done.stdout


def _configure(root: Path, path: Path) -> None:
    """The clone's own settings of dvc and git: the workspace's, and its cache."""
    if (local := root / ".dvc/config.local").exists():
        shutil.copy2(local, path / ".dvc/config.local")
    cache = run(root, sys.executable, "-m", "dvc", "cache", "dir").strip()
    run(path, sys.executable, "-m", "dvc", "--quiet", "cache", "dir", "--local", str((root / cache).resolve()))
    for key in ("user.name", "user.email"):
        if value := subprocess.run(["git", "config", key], cwd=root, capture_output=True, text=True).stdout.strip():
            run(path, "git", "config", key, value)


def _fingerprint(root: Path, revision: str, changes: str, untracked: list[str], variant: Variant) -> str:
    files = {name: _digest(root / name) for name in untracked}
    parts = [revision, changes, files, variant.overrides]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    """Of a file's content, or of where a link points to."""
    content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
    return hashlib.sha256(content).hexdigest()


def _word(value: str) -> str:
    """A value as part of a name that git and DVC accept."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", value).strip("_") or "none"
