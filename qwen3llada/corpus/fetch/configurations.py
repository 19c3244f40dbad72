"""Configurations in a local copy of a hub data set: separate data sets in one folder, which must not be merged."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen3llada.errors import InputError

#: Names of splits in file and folder names. The first is the split of a source without splits.
SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval", "heldout")


def of_configuration(folder: Path, files: Sequence[Path], split: str, config: str | None) -> list[Path]:
    """The data `files` in `folder` that belong to the configuration `config`.

    Configurations are those listed in the head of README.md, as on the hub; otherwise the subfolders that each contain
    `split` (main/train.jsonl, socratic/train.jsonl).
    Raises: InputError if there are several and `config` is None, or if none has this name.
    """
    known = {name: found for name, found in _listed(folder, files).items() if found}
    if len(known) < 2:
        known = _by_folder(folder, files, split) or known
    if config is None:
        if len(known) > 1:
            raise InputError(
                f"{folder}: has {len(known)} configurations: {', '.join(sorted(known))}; set config to one of them"
            )
        return [*files]
    if config not in known:
        raise InputError(f"{folder}: {config=} is none of its configurations: {', '.join(sorted(known)) or 'none'}")
    return known[config]


def _by_folder(folder: Path, files: Sequence[Path], split: str) -> dict[str, list[Path]]:
    """Files by the folder that contains the splits; {} unless at least two folders have the split `split`."""
    found: dict[str, list[Path]] = {}
    having = set()
    for file in files:
        parts = file.relative_to(folder).parts
        depth = next((i for i, part in enumerate(parts[:-1]) if part in (split, *SPLIT_NAMES)), len(parts) - 1)
        name = "/".join(parts[:depth]) or "."
        found.setdefault(name, []).append(file)
        if split_of(file.relative_to(folder), split) == split:
            having.add(name)
    return {name: found[name] for name in sorted(having)} if len(having) > 1 else {}


def split_of(file: Path, wanted: str) -> str | None:
    """The split in a file's relative path: the name of a folder, or a word in the file's name."""
    words: Sequence[str] = [*file.parts[:-1], *re.split(r"[._-]", file.name)]
    return next((name for name in (wanted, *SPLIT_NAMES) if name in words), None)


def readme_head(folder: Path) -> str | None:
    """The YAML head of the folder's README.md."""
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    text = readme.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return head[1] if head else None


def _listed(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The configurations in the README's head, with the `files` that match their patterns."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    head = readme_head(folder)
    try:
        values = YAML(typ="safe", pure=True).load(head) if head else None
    except YAMLError:  # a README is written for people and may be invalid YAML
        return {}
    entries = values.get("configs") if isinstance(values, dict) else None
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("config_name"), str):
            base = str(entry.get("data_dir") or ("." if entry.get("data_files") else entry["config_name"]))
            patterns = [f"{base}/{pattern}" for pattern in _patterns(entry.get("data_files"))] or [f"{base}/**/*"]
            named = {path for pattern in patterns for path in folder.glob(pattern)}
            found[entry["config_name"]] = [file for file in files if file in named]
    return found


def _patterns(data_files: Any) -> list[str]:
    """The path patterns in `data_files`: one pattern, a list of them, or a list of {split, path}."""
    if isinstance(data_files, str):
        return [data_files.lstrip("/")]
    if isinstance(data_files, dict):
        return _patterns(data_files.get("path"))
    return [pattern for item in data_files for pattern in _patterns(item)] if isinstance(data_files, list) else []
