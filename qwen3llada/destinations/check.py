"""The check of the paths that a stage is about to write. It changes nothing."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from qwen3llada.destinations.kinds import Kind
from qwen3llada.errors import InputError

SHOWN = 200  # characters of a path in an error
TEMPORARY = len("..01234567.partial")  # extra characters in the name of a temporary file or folder
INSIDE = 100  # bytes of the maximal path length reserved for file names in a folder


def check_destinations(
    writes: Mapping[str, tuple[str | os.PathLike, Kind]], reads: Mapping[str, str | os.PathLike | None]
) -> None:
    """Check all paths that a stage is about to write. Nothing is written.

    Args:
        writes: knob -> path and kind of output. reads: knob -> input that must survive; None and paths that do not
            exist (hub ids) are skipped.

    Raises: InputError in one line that names the knob, the path and what is allowed.
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
    """Problems of a path by itself. Later checks rely on earlier ones, so only the first problem is reported."""
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
            continue  # the reader of this input reports it
        if _holds(path, source):
            yield f"must not be the input {knob}={str(source)!r}, nor hold it: the input would be lost"
        if _holds(source, path):
            yield f"must not lie in the input {knob}={str(source)!r}"


def _shared_problems(path: Path, kind: Kind, others: Mapping[str, tuple[Path, Kind]]) -> Iterator[str]:
    """Content that would be lost at a path: another destination of the same run, or existing files."""
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
    """Test by making and removing a folder, because permissions alone do not tell (as under /proc)."""
    inside = [path] if path.is_dir() and kind.folder else []
    for folder in (_nearest_folder(path), *inside):
        try:
            os.rmdir(tempfile.mkdtemp(prefix=".qwen3llada-", dir=folder))
        except OSError as error:
            yield f"cannot be written: {folder}: {error.strerror}"


def _nearest_folder(path: Path) -> Path:
    """The nearest existing folder above `path`."""
    for parent in path.absolute().parents:
        try:
            if parent.is_dir():
                return parent
        except OSError:  # the name is too long
            continue
    return Path("/")


def _holds(outer: Path, inner: Path) -> bool:
    """Whether `inner` is `outer` or lies in it, with links resolved."""
    real = Path(os.path.realpath(inner))
    return any(_same(outer, place) for place in (real, *real.parents))


def _same(one: Path, other: Path) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)  # a bind mount, or a case-insensitive file system
    except OSError:
        return False


def _entry(folder: Path, inner: Path) -> str | None:
    """The entry of `folder` that contains `inner`; None if `inner` is elsewhere."""
    real, above = Path(os.path.realpath(inner)), Path(os.path.realpath(folder))
    return real.relative_to(above).parts[0] if above in real.parents else None
