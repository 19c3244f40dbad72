"""Local sources: how to recognise one, and the files of each split. This module never accesses the network."""

import glob
import os
import re
from pathlib import Path

from qwen3llada.corpus.fetch.configurations import SPLIT_NAMES, of_configuration, readme_head, split_of
from qwen3llada.corpus.files.reading import data_files, find_data_files
from qwen3llada.corpus.files.rows import declared_format, file_format, is_bookkeeping
from qwen3llada.errors import InputError

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def is_local(name: str) -> bool:
    """Whether `name` is a path and not a hub id: it exists, or does not have the form of a hub id.

    Raises: InputError if it is a path that does not exist.
    """
    path = Path(name).expanduser()
    if path.exists() or glob.has_magic(name):
        return True
    if _HUB_ID.fullmatch(name) and declared_format(path) is None:
        return False
    raise InputError(f"{name}: no such file or folder")


def local_files(name: str, split: str, config: str | None = None) -> list[Path]:
    """The data files of a split of a local source, sorted by path.

    A folder's splits are named by its subfolders or files (`test/…`, `test.jsonl`, `test-00000.parquet`,
    `gsm8k_test.jsonl`). If no name contains a split, all files are `train`; so are a single file and a glob (of files
    or folders). `config` chooses one of a folder's configurations (`of_configuration`).
    Raises: InputError if there is no such split, no data file, or several configurations and none is chosen.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _of_folder(path, split, config)
    if config is not None:
        raise InputError(f"{name}: {config=} must be null, a local source has none unless it is a folder")
    named = [path] if path.exists() else [Path(found) for found in glob.glob(str(path), recursive=True)]
    readable = {file for file in named if file_format(file) and not file.is_dir()}
    readable |= {file for folder in named if folder.is_dir() for file in find_data_files(folder)}
    if not readable:
        if path.exists() and is_bookkeeping(path):
            raise InputError(f"{name}: by its name it describes data and holds none; give it another name")
        raise InputError(f"{name}: no data file among the {len(named)} files that it names")
    if split != SPLIT_NAMES[0]:
        raise InputError(f"{name}: {split=} must be {SPLIT_NAMES[0]}; only folders have other splits")
    return sorted(readable)


def left_out(name: str) -> list[str]:
    """Files of a local source that have a data format but are no data by their names, relative to its folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        found = {f.relative_to(path) for f in path.rglob("*") if is_bookkeeping(f) and not _hidden(f.relative_to(path))}
    else:
        found = {Path(file) for file in glob.glob(str(path), recursive=True) if is_bookkeeping(Path(file))}
    return sorted(file.as_posix() for file in found)


def _hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _of_folder(folder: Path, split: str, config: str | None) -> list[Path]:
    files = of_configuration(folder, data_files(folder), split, config)
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(file.relative_to(folder), split), []).append(file)
    if split in by_split:
        return by_split[split]
    if split == SPLIT_NAMES[0] and set(by_split) == {None}:
        return files
    known = ", ".join(sorted(name for name in by_split if name)) or SPLIT_NAMES[0]
    raise InputError(f"{folder}: no {split=} in it; found: {known}")


def licence_of(name: str) -> str | None:
    """The licence of a local source: `license:` in the head of its README.md, else the title of its licence file."""
    path = Path(name).expanduser()
    folder = path if path.is_dir() else path.parent
    head = readme_head(folder)
    if head and (found := re.search(r"^license:\s*(\S.*)$", head, re.MULTILINE)):
        return found[1].strip()
    for entry in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if entry.upper().startswith(("LICENSE", "LICENCE", "COPYING")) and (folder / entry).is_file():
            lines = (folder / entry).read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip() for line in lines if line.strip()), None)
    return None
