"""Local sources: what is one, and which files a split of it has. Nothing here can reach the network."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from qwen3llada.corpus.blocks import file_format
from qwen3llada.corpus.reading import data_files, find_data_files
from qwen3llada.errors import InputError

#: Names that splits have in the names of files and folders; the first is what a source without splits has.
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "heldout")
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def is_local(name: str) -> bool:
    """Whether `name` is a path and not a hub id: it exists, or a hub id cannot have its form.

    Raises: ValueError if it is a path and nothing is there.
    """
    path = Path(name).expanduser()
    if path.exists() or glob.has_magic(name):
        return True
    if _HUB_ID.fullmatch(name) and file_format(path) is None:
        return False
    raise InputError(f"{name}: no such file or folder")


def local_files(name: str, split: str) -> list[Path]:
    """The data files of a split of a local source, in the order of their paths.

    A folder has the splits that its subfolders or files are named after (`test/…`, `test.jsonl`, `test-00000.parquet`,
    `gsm8k_test.jsonl`); one in which none is, a file and a glob (of files, or of folders) are all `train`.
    Raises: ValueError if there is no such split, or no data file.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _of_folder(path, split)
    named = [path] if path.exists() else [Path(found) for found in glob.glob(str(path), recursive=True)]
    readable = {file for file in named if file_format(file) and not file.is_dir()}
    readable |= {file for folder in named if folder.is_dir() for file in find_data_files(folder)}
    if not readable:
        raise InputError(f"{name}: no data file among the {len(named)} files that it names")
    if split != SPLITS[0]:
        raise InputError(f"{name}: {split=} must be {SPLITS[0]}; only folders have other splits")
    return sorted(readable)


def _of_folder(folder: Path, split: str) -> list[Path]:
    files = data_files(folder)
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(folder), split), []).append(file)
    if split in by_split:
        return by_split[split]
    if split == SPLITS[0] and set(by_split) == {None}:
        return files
    known = ", ".join(sorted(name for name in by_split if name)) or SPLITS[0]
    raise InputError(f"{folder}: no {split=} in it; found: {known}")


def _split_of(file: Path, wanted: str) -> str | None:
    """The split in a file's relative path: a folder named after it, or a word of the file's name."""
    words: Sequence[str] = [*file.parts[:-1], *re.split(r"[._-]", file.name)]
    return next((name for name in (wanted, *SPLITS) if name in words), None)


def licence_of(name: str) -> str | None:
    """The licence of a local source: `license:` in the head of its README.md, else its licence file's title."""
    path = Path(name).expanduser()
    folder = path if path.is_dir() else path.parent
    readme = folder / "README.md"
    if readme.is_file():
        head = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        if head and (found := re.search(r"^license:\s*(\S.*)$", head[1], re.MULTILINE)):
            return found[1].strip()
    for entry in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if entry.upper().startswith(("LICENSE", "LICENCE", "COPYING")) and (folder / entry).is_file():
            lines = (folder / entry).read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip() for line in lines if line.strip()), None)
    return None
