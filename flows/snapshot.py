"""Copies of a workspace's files for a clone, byte for byte, without git's conversion of line ends."""

import glob
import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

from flows.commands import output_of

NEVER = {".git", ".dvc", "__pycache__"}  # folders without data


def visible_files(root: Path) -> list[str]:
    """Files in the workspace at `root` that git tracks or would add, relative to it, without deleted ones.

    Raises: ValueError for what a clone cannot have: a repository inside this one, or a link that leads out of it.
    """
    listed = output_of(root, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = sorted({name for name in listed.split("\0") if name and os.path.lexists(root / name)})
    for name in names:
        path = root / name
        if path.is_symlink():
            _refuse_leading_out(root, name)
        elif path.is_dir():
            raise ValueError(
                f"{name} is a git repository inside this one, which a clone cannot take; add it to .gitignore"
            )
    return names


def hidden_files(root: Path, inputs: Iterable[tuple[str, str]], visible: Collection[str]) -> list[str]:
    """The files that a variant reads and git does not see, relative to `root`, sorted.

    Args:
        inputs: (where it is given, path) pairs. A path is a file, a folder or a glob. Paths that do not exist, such as
            the name of a remote data set, and absolute paths, which are the same in a clone, are skipped.
        visible: result of `visible_files`.
    Raises: ValueError for a relative path out of the workspace, because it would lead elsewhere from a clone.
    """
    found: set[str] = set()
    for where, given in inputs:
        if not given or os.path.isabs(os.path.expanduser(given)):
            continue
        normal = os.path.normpath(given)
        if normal.split(os.sep)[0] == os.pardir:
            absolute = os.path.normpath(root.resolve() / given)
            raise ValueError(
                f"{where}: given {given!r}, which leads out of the workspace; in a sweep it must be an absolute path: "
                f"{absolute}"
            )
        matches = [normal] if os.path.lexists(root / normal) else glob.glob(normal, root_dir=root, recursive=True)
        if os.curdir in matches:
            raise ValueError(
                f"{where}: given {given!r}, the workspace itself; in a sweep it must be a folder inside it"
            )
        found.update(file for match in matches for file in _files(root, match))
    return sorted(found.difference(visible))


def copy_files(root: Path, names: Iterable[str], destination: Path, *, links: bool) -> None:
    """Copy content and mode of files. Links are copied as links, or else as the files that they point to.

    Raises: ValueError for a file that would lie behind a broken link in the clone.
    """
    for name in names:
        target = destination / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ValueError(f"{name}: lies behind a link to what git does not see; give the path itself") from None
        shutil.copy2(root / name, target, follow_symlinks=not links)


def digests(root: Path, names: Iterable[str], *, links: bool) -> dict[str, str]:
    """File name -> SHA-256 of content, and mode. For links: of the target's path, or else of the target's content."""
    return {name: _digest(root / name, links) for name in names}


def _digest(path: Path, links: bool) -> str:
    status = path.lstat() if links else path.stat()
    if stat.S_ISLNK(status.st_mode):
        return hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()
    return f"{_content(path, status.st_size, status.st_mtime_ns, status.st_ino)} {status.st_mode & 0o111:o}"


@cache
def _content(path: Path, _size: int, _time: int, _inode: int) -> str:
    """SHA-256 of a file, read once for all variants of a sweep as long as the file does not change."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(root: Path, name: str) -> Iterator[str]:
    """The file `name`, or all files below the folder `name`, following links and visiting each folder once."""
    if not (root / name).is_dir():
        yield from [name] if (root / name).is_file() else []
        return
    seen: set[str] = set()
    for folder, folders, files in os.walk(root / name, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [inner for inner in folders if inner not in NEVER]
        for file in files:
            if os.path.isfile(path := os.path.join(folder, file)):
                yield os.path.relpath(path, root)


def _refuse_leading_out(root: Path, name: str) -> None:
    """Raise ValueError for a relative link out of the workspace, which leads elsewhere from a clone."""
    leads = os.readlink(root / name)
    if os.path.isabs(leads):
        return
    reached = os.path.normpath(os.path.join(os.path.dirname(name), leads))
    if reached.split(os.sep)[0] == os.pardir and (root / name).exists():
        raise ValueError(f"{name}: a link to {leads}, out of the workspace; for a sweep it must be an absolute link")
