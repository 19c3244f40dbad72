"""Writing outputs whole or not at all, and reading them back.

Every output goes to a temporary sibling first, is flushed to the disk, and takes its name by a rename. So a reader
never meets half an output, a failure leaves what was there before, and a file that DVC has hard-linked into its cache
is replaced by a new one instead of being rewritten in place. Outputs get the permissions that the umask gives:
safetensors, for one, makes its files readable by their owner alone.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3llada.encodings import seeming_encoding, wide_encoding
from qwen3llada.errors import InputError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
MARKER = ".qwen3llada.json"  # in a folder that may be replaced whole: what this project wrote there


class FullDiskError(OSError):
    """The disk is full; the message names the output, and `errno` is the system's."""


@contextmanager
def new_file(path: str | os.PathLike, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to; on success flush it and rename it to `path`.

    Missing parent folders are made. `size`, the number of bytes about to be written where it is known, is named in the
    error when the disk is full.
    Raises: OSError in one line, naming `path`, when the disk is full; what the body raises. The old file then stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        with full_disk_named(path, size):
            yield temporary
            _settle(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: str | os.PathLike, size: int | None = None) -> Iterator[Path]:
    """Yield an empty temporary sibling folder to fill; on success flush it and put it in the place of `path`.

    The temporary folder is always `.NAME.partial` beside `path`: there is one writer at a time, every process of a
    distributed run can name it, and what a killed run left is removed by the next one. `size` as in `new_file`.
    Raises: OSError in one line, naming `path`, when the disk is full; whatever the body raises. What was at `path`
    before then stays, and nothing else is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.partial"
    _remove(temporary)
    try:
        with full_disk_named(path, size):
            temporary.mkdir()
            yield temporary
            publish(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def publish(folder: Path, path: Path) -> None:
    """Flush `folder` to the disk and rename it to `path`; what was at `path` is removed only after that.

    A folder cannot be renamed over one that has files, so the old one steps aside and returns if the rename fails.
    """
    _settle(folder)
    old = path.parent / f".{path.name}.old"
    if os.path.lexists(path):
        _remove(old)
        os.rename(path, old)
    try:
        os.rename(folder, path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.rename(old, path)
        raise
    _flush(path.parent)
    _remove(old)


def mark(folder: Path) -> None:
    """Record in `folder` the names of the files in it, so that a later run knows what it may replace.

    The marker has the same bytes wherever the same files are written: DVC hashes the folder.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    written = {"written_by": "qwen3llada", "files": [name for name in names if name != MARKER]}
    write_json(folder / MARKER, written)


def read_marker(folder: Path) -> set[str] | None:
    """The names that `mark` recorded in `folder`; None where there is no marker.

    Raises: InputError naming a marker that is damaged.
    """
    if not (folder / MARKER).is_file():
        return None
    tree = read_json(folder / MARKER)
    files = tree.get("files") if isinstance(tree, dict) else None
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise InputError(f"{folder / MARKER}: damaged: it must list the files that were written")
    return set(files)


@contextmanager
def new_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield a temporary sibling of each path, not there yet; on success all take their places, or none does.

    The body makes a file or a folder at each. Whatever the body raises, or the renames, everything is as it was before.
    The last path should be the record of the others: a process that is killed between two renames leaves no file there.
    Raises: OSError in one line when the disk is full; whatever the body raises.
    """
    temporaries = [path.parent / f".{path.name}.partial" for path in paths]
    for path, temporary in zip(paths, temporaries, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
    try:
        with full_disk_named(Path(os.path.commonpath([path.absolute().parent for path in paths])) / "*"):
            yield temporaries
            for temporary in temporaries:
                _settle(temporary)
            _swap(paths, temporaries)
    except BaseException:
        for temporary in temporaries:
            _remove(temporary)
        raise


def _swap(paths: Sequence[Path], temporaries: Sequence[Path]) -> None:
    """Rename each temporary to its path; undo all of it if one rename fails."""
    olds = [path.parent / f".{path.name}.old" for path in paths]
    for path, old in zip(paths, olds, strict=True):  # what a killed process left between two renames
        if os.path.lexists(old) and not os.path.lexists(path):
            os.rename(old, path)
        _remove(old)
    try:
        for path, old in reversed([*zip(paths, olds, strict=True)]):
            if os.path.lexists(path):
                os.rename(path, old)
        for path, temporary in zip(paths, temporaries, strict=True):
            os.rename(temporary, path)
    except BaseException:
        for path, old, temporary in zip(paths, olds, temporaries, strict=True):
            if not os.path.lexists(temporary):  # it has been put in place
                os.rename(path, temporary)
            if os.path.lexists(old):
                os.rename(old, path)
        raise
    for folder in {path.parent for path in paths}:
        _flush(folder)
    for old in olds:
        _remove(old)


@contextmanager
def full_disk_named(path: str | os.PathLike, size: int | None = None) -> Iterator[None]:
    """Turn a full disk's error into one line that names `path`, the bytes to write (`size`) and the bytes free.

    Raises it at once where it is known that `size` bytes will not fit.
    """
    folder = _existing(Path(path))
    try:
        if size is not None and size > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except Exception as error:
        number = _full_disk_number(error)
        if isinstance(error, FullDiskError) or number is None:
            raise
        needed = f", {size:,} bytes to write" if size is not None else ""
        free = shutil.disk_usage(folder).free
        clear = FullDiskError(f"no space left on the disk for {path}{needed}, {free:,} bytes free")
        clear.errno = number
        raise clear from error


def _full_disk_number(error: BaseException | None) -> int | None:
    """The system's number of the full disk that `error` comes from; None if it comes from something else.

    safetensors reports the system's error as text in an exception of its own, torch as the context of one.
    """
    while error is not None:
        for number in FULL_DISK:
            if getattr(error, "errno", None) == number or f"os error {number})" in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def file_digest(path: str | os.PathLike) -> str:
    """16 hexadecimal digits of the SHA-256 of a file: enough to tell whether two small files are the same."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Write `obj` as indented UTF-8 JSON. Raises ValueError for NaN and infinities, which JSON does not have."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    data = text.encode()
    with new_file(path, size=len(data)) as temporary:
        temporary.write_bytes(data)


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file. Raises FileNotFoundError, or InputError naming the file and line that are not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if (wide := wide_encoding(error.doc.encode())) is not None:  # ASCII as UTF-16 without its mark is valid UTF-8
            raise InputError(f"{path}: not UTF-8 text; it seems to be {wide}") from error
        raise InputError(f"{path}: line {error.lineno} is not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        seems = seeming_encoding(error.object)
        raise InputError(
            f"{path}: not UTF-8 text: {error.reason} at byte {error.start}; it seems to be {seems}"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise InputError(f"{path}: not JSON that can be read: {error}") from error


def write_jsonl(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Write one JSON value per line, as the iterable gives them. Raises ValueError for NaN and infinities."""
    with new_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: str | os.PathLike) -> Iterator[Any]:
    """Yield the value of each line that is not blank. A byte order mark before the first is passed over.

    Raises: FileNotFoundError at once; InputError naming the file and the line that is not UTF-8 text (with the encoding
    that it seems to have) or not JSON, when it is reached.
    """
    file = open(path, "rb")  # noqa: SIM115 - opened here so that a missing file is an error of the call

    def values() -> Iterator[Any]:
        with file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    if not text.strip():
                        continue
                    value = json.loads(text)
                except UnicodeDecodeError as error:
                    seems = seeming_encoding(line + file.read(1 << 16) if number == 1 else line)
                    raise InputError(
                        f"{path}: line {number} is not UTF-8 text: {error.reason}; it seems to be {seems}"
                    ) from error
                except json.JSONDecodeError as error:
                    if number == 1 and (wide := wide_encoding(line + file.read(1 << 16))) is not None:
                        raise InputError(f"{path}: not UTF-8 text; it seems to be {wide}") from error
                    raise InputError(f"{path}: line {number} is not JSON: {error.msg}") from error
                except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
                    raise InputError(f"{path}: line {number} is not JSON that can be read: {error}") from error
                yield value

    return values()


def _settle(path: Path) -> None:
    """Give a file, or a folder and all that is in it, the usual permissions, and wait until it is on the disk."""
    usual = _folder_mode(path.parent)
    if path.is_file():
        _set_mode(path, usual & 0o666)
        _flush(path)
    for directory, _, files in os.walk(path):
        for name in files:
            _set_mode(Path(directory, name), usual & 0o666)
            _flush(Path(directory, name))
        _set_mode(Path(directory), usual)
        _flush(Path(directory))


def _folder_mode(parent: Path) -> int:
    """The permissions of a new folder in `parent`, by the umask, the mount and the parent's default ACL.

    Read off a folder that is made and removed: Python can ask for the umask only by setting it, for all threads.
    """
    probe = parent / f".mode.{secrets.token_hex(4)}.partial"
    probe.mkdir()
    try:
        return probe.stat().st_mode & 0o777
    finally:
        probe.rmdir()


def _set_mode(path: Path, mode: int) -> None:
    present = stat.S_IMODE(path.lstat().st_mode)
    if present & 0o777 != mode and not path.is_symlink():
        path.chmod(present & ~0o777 | mode)


def _flush(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file, link or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _existing(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())
