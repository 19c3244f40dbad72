"""Where a stage may write: one check of every path that a knob names, made before anything is written.

What is at a path is replaced only if it is empty or was written by this project. An input, the project's folder, a
mount point, a link, and any folder that holds one of these are never replaced. The fixed outputs under data/ and
reports/ belong to DVC and are not checked, except where a source may lie in them (`OUTPUT`, for `download`).
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from qwen3llada.artifacts import MARKER, read_marker
from qwen3llada.errors import InputError

LOCK_FILE = ".qwen3llada.lock"  # in a working folder, held by the run that works there
IGNORED = (".gitignore", ".DS_Store")  # put beside outputs by DVC and by file managers
MODEL_TYPE = "qwen3llada"
# What the model folders hold that were written before there was a marker.
MODEL_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*_qwen3llada.py"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*"),
    *("adapter", "adapter_config.json", "README.md", "LICENSE*", "NOTICE*"),
)
CHECKPOINT = re.compile(r"[0-9a-f]{12}|\.?step-\d+(\.partial|\.old)?")  # a run's folder, or one of an older layout
CURVES = ("plots", "summary.json", "speed.json", "speed.jsonl", "metrics.json", "metrics.jsonl")
ANSWER_KEYS = {"prompt", "answer", "forward_passes"}
PAGE_TITLE = "<title>qwen3llada: denoising of "

SHOWN = 200  # characters of a path in an error
TEMPORARY = len("..01234567.partial")  # what the name of a temporary file or folder has beside that of its output
INSIDE = 100  # bytes left for the names of the files in a folder, of what a path may have in all


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a stage writes at a path.

    `foreign(path, own)` names the first thing at an existing path that this project did not write, None if there is
    none; `own` are entries of the folder that are destinations of the same run. `replaced` is the part of a folder that
    is replaced, relative to it.
    """

    folder: bool
    foreign: Callable[[Path, frozenset[str]], str | None]
    replaced: str = "."


def check_destinations(
    writes: Mapping[str, tuple[str | os.PathLike, Kind]], reads: Mapping[str, str | os.PathLike | None]
) -> None:
    """Check all paths that a stage is about to write. Nothing is written.

    Args:
        writes: knob -> path and what is written there. reads: knob -> input that must stay; None, and what does not
            exist (a hub id), is passed over.

    Raises: InputError, one line that names the knob, the path and what is allowed.
    """
    inputs = {knob: Path(path).expanduser() for knob, path in reads.items() if path is not None}
    for knob, (path, kind) in writes.items():
        _raise_first(knob, path, _own_problems(Path(path), kind, inputs))
    for knob, (path, kind) in writes.items():
        others = {name: (Path(other), its) for name, (other, its) in writes.items() if name != knob}
        _raise_first(knob, path, _shared_problems(Path(path), kind, others))


def _raise_first(knob: str, given: str | os.PathLike, problems: Iterator[str]) -> None:
    try:
        problem = next(problems, None)
    except OSError as error:
        problem = f"cannot be used: {error.strerror or error}"
    if problem is not None:
        text = str(given) if len(str(given)) <= SHOWN else f"{str(given)[:SHOWN]}…"
        raise InputError(f"{knob}={text!r} {problem}")


def _own_problems(path: Path, kind: Kind, inputs: Mapping[str, Path]) -> Iterator[str]:
    """What is wrong with a path itself. Each check relies on those before it, so only the first problem is meant."""
    yield from _name_problems(path)
    yield from _place_problems(path, kind)
    project = Path.cwd()
    if _holds(path, project):
        yield "must not be the project's folder, nor hold it; give a folder or file of its own"
    for private in (project / ".git", project / ".dvc"):
        if _holds(private, path):
            yield f"must not lie in {private.name}"
    for knob, source in inputs.items():
        if not source.exists():
            continue  # whoever reads it says so
        if _holds(path, source):
            yield f"must not be the input {knob}={str(source)!r}, nor hold it: the input would be lost"
        if _holds(source, path):
            yield f"must not lie in the input {knob}={str(source)!r}"


def _shared_problems(path: Path, kind: Kind, others: Mapping[str, tuple[Path, Kind]]) -> Iterator[str]:
    """What would be lost at a path: another destination of the same run, or what is there."""
    for knob, (other, its) in others.items():
        if _same(path, other):
            yield f"must not be {knob} too"
        if _holds(other / its.replaced, path):
            yield f"must not lie in {knob}={str(other / its.replaced)!r}, which is replaced"
    if path.exists():
        own = frozenset(name for other, _ in others.values() if (name := _entry(path, other)))
        if foreign := kind.foreign(path, own):
            yield f"{foreign}; give a new or empty {'folder' if kind.folder else 'file'}, or one that this stage wrote"
    yield from _writing_problems(path, kind)


def _name_problems(path: Path) -> Iterator[str]:
    text = str(path.absolute())
    if "\0" in text:
        yield "must not hold a NUL character"
    if path.name == ".." or text == "/":
        yield "must end with a name"
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        yield "must be a name that the file system can encode"
        return
    above = _nearest_folder(path)
    longest, most = os.pathconf(above, "PC_NAME_MAX"), os.pathconf(above, "PC_PATH_MAX")
    *parents, name = encoded.split(b"/")
    if len(name) + TEMPORARY > longest or any(len(part) > longest for part in parents):
        yield f"must have names of at most {longest - TEMPORARY} bytes"
    if len(encoded) + TEMPORARY + INSIDE > most:
        yield f"must have at most {most - TEMPORARY - INSIDE} bytes in all, has {len(encoded)}"


def _place_problems(path: Path, kind: Kind) -> Iterator[str]:
    if path.is_symlink():
        yield f"must not be a link (it points to {os.readlink(path)}); give the path itself, or remove the link"
    for parent in path.absolute().parents:
        if os.path.lexists(parent) and not parent.is_dir():
            yield f"must lie in a folder, {parent} is none"
    if not path.exists():
        return
    if kind.folder and not path.is_dir():
        yield "must be a folder"
    if not kind.folder and not path.is_file():
        yield "must be a file"
    if os.path.ismount(path):
        yield "must not be a mount point; give a folder in it"


def _writing_problems(path: Path, kind: Kind) -> Iterator[str]:
    """Make a folder where something will be made, and remove it: permissions alone do not tell (as under /proc)."""
    inside = [path] if path.is_dir() and kind.folder else []
    for folder in (_nearest_folder(path), *inside):
        try:
            os.rmdir(tempfile.mkdtemp(prefix=".qwen3llada-", dir=folder))
        except OSError as error:
            yield f"cannot be written: {folder}: {error.strerror}"


def _nearest_folder(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    for parent in path.absolute().parents:
        try:
            if parent.is_dir():
                return parent
        except OSError:  # a name that is too long
            continue
    return Path("/")


def _holds(outer: Path, inner: Path) -> bool:
    """Whether `inner` is `outer` or lies in it, by whatever names."""
    real = Path(os.path.realpath(inner))
    return any(_same(outer, place) for place in (real, *real.parents))


def _same(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # a bind mount, or a file system that folds case
    except OSError:
        return False


def _entry(folder: Path, inner: Path) -> str | None:
    """The entry of `folder` in which `inner` lies, None if it lies elsewhere."""
    real, above = Path(os.path.realpath(inner)), Path(os.path.realpath(folder))
    return real.relative_to(above).parts[0] if above in real.parents else None


def _entries(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name not in IGNORED)


def _holds_foreign(name: str) -> str:
    return f"holds {name}, which this project did not write"


def _foreign_to_model(path: Path, own: frozenset[str]) -> str | None:
    entries = _entries(path)
    written = read_marker(path)
    if written is not None:
        found = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())
        foreign = [name for name in found if name not in written and Path(name).name not in (*IGNORED, MARKER)]
    elif _is_model(path):
        foreign = [name for name in entries if not any(fnmatch(name, pattern) for pattern in MODEL_FILES)]
    else:
        foreign = entries
    return _holds_foreign(foreign[0]) if foreign else None


def _is_model(folder: Path) -> bool:
    """Whether this project wrote the model or the adapters in a folder without a marker."""
    config, adapter = _json(folder / "config.json"), _json(folder / "adapter_config.json")
    base = (adapter.get("auto_mapping") or {}).get("base_model_class") or ""
    return config.get("model_type") == MODEL_TYPE or str(base).startswith("Qwen3LLada")


def _foreign_to_work(path: Path, own: frozenset[str]) -> str | None:
    entries = [name for name in _entries(path) if name not in own]
    if LOCK_FILE in entries:
        return None
    foreign = [name for name in entries if name not in ("checkpoints", "trackers")]
    saved = path / "checkpoints"
    if not foreign and saved.is_dir():
        foreign = [f"checkpoints/{name}" for name in _entries(saved) if not CHECKPOINT.fullmatch(name)]
    return _holds_foreign(foreign[0]) if foreign else None


def _foreign_to_curves(path: Path, own: frozenset[str]) -> str | None:
    foreign = [name for name in _entries(path) if name not in CURVES]
    for file in sorted((path / "plots").rglob("*")):
        name = file.relative_to(path).as_posix()
        if not (file.is_dir() or file.name in IGNORED or fnmatch(name, "plots/metrics/*.tsv")):
            foreign.append(name)
    return _holds_foreign(foreign[0]) if foreign else None


def _foreign_to_answers(path: Path, own: frozenset[str]) -> str | None:
    with open(path, "rb") as file:
        first = file.readline()
    try:
        row = json.loads(first) if first else None
    except ValueError:
        row = first
    ours = row is None or (isinstance(row, dict) and row.keys() >= ANSWER_KEYS)
    return None if ours else "exists and does not hold answers of this stage"


def _foreign_to_page(path: Path, own: frozenset[str]) -> str | None:
    with open(path, "rb") as file:
        head = file.read(2000).decode(errors="replace")
    return None if not head or PAGE_TITLE in head else "exists and is no page of this stage"


def _json(path: Path) -> dict:
    """A JSON object in a file; {} where there is none."""
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


MODEL = Kind(folder=True, foreign=_foreign_to_model)  # a model or adapters, replaced whole
WORK = Kind(folder=True, foreign=_foreign_to_work, replaced="checkpoints")  # checkpoints; the folder itself stays
REPORTS = Kind(folder=True, foreign=_foreign_to_curves)  # DVCLive removes what it finds there
ANSWERS = Kind(folder=False, foreign=_foreign_to_answers)
PAGE = Kind(folder=False, foreign=_foreign_to_page)
OUTPUT = Kind(folder=True, foreign=lambda path, own: None)  # of DVC, at a path that no knob changes
