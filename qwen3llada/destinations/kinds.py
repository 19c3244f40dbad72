"""Kinds of output, and how each kind is recognised as written by this project."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from qwen3llada.artifacts import MARKER, finished_name, read_marker

LOCK_FILE = ".qwen3llada.lock"  # in a working folder, locked by the run that uses it
IGNORED = (".gitignore", ".DS_Store")  # created beside outputs by DVC and by file managers
MODEL_TYPE = "qwen3llada"
# Files in model folders written before markers existed.
MODEL_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*_qwen3llada.py"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*"),
    *("adapter", "custom_generate", "adapter_config.json", "README.md", "LICENSE*", "NOTICE*"),
)
CHECKPOINT = re.compile(r"[0-9a-f]{12}|\.?step-\d+(\.partial|\.old)?")  # a run's folder; an older checkpoint's
CURVES = (
    *("plots", "summary.json", "speed.json", "speed.jsonl", "metrics.json", "metrics.jsonl"),
    *("rollouts.jsonl", "rollouts.html", "heldout.jsonl"),  # of post-training
    "mode",  # tried for a moment by `artifacts`
)
ANSWER_KEYS = {"prompt", "answer", "forward_passes"}
PAGE_TITLE = "<title>qwen3llada: denoising of "
CARD_PART = ": renewed by qwen3llada -->"  # begins a part of a model card


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Kind of output that a stage writes at a path.

    `foreign(path, own)` describes the first thing at an existing path that this project did not write; None if there is
    none. `own`: entries of the folder that are destinations of the same run. `replaced`: the part of a folder that is
    replaced, relative to it.
    """

    folder: bool
    foreign: Callable[[Path, frozenset[str]], str | None]
    replaced: str = "."


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
    """Whether this project wrote the model or adapters in a folder without a marker."""
    config, adapter = _json(folder / "config.json"), _json(folder / "adapter_config.json")
    base = (adapter.get("auto_mapping") or {}).get("base_model_class") or ""
    return config.get("model_type") == MODEL_TYPE or str(base).startswith("Qwen3LLada")


def _foreign_to_export(path: Path, own: frozenset[str]) -> str | None:
    return _foreign_to_model(path, own) if read_marker(path) is not None else _first_foreign(_entries(path))


def _first_foreign(entries: list[str]) -> str | None:
    return _holds_foreign(entries[0]) if entries else None


def _foreign_to_work(path: Path, own: frozenset[str]) -> str | None:
    entries = [name for name in _entries(path) if name not in own]
    if LOCK_FILE in entries:
        return None
    foreign = [name for name in entries if name not in ("checkpoints", "trackers", "rollouts")]
    saved = path / "checkpoints"
    if not foreign and saved.is_dir():
        foreign = [f"checkpoints/{name}" for name in _entries(saved) if not CHECKPOINT.fullmatch(name)]
    return _holds_foreign(foreign[0]) if foreign else None


def _foreign_to_curves(path: Path, own: frozenset[str]) -> str | None:
    # What a killed run was writing counts as the file that it would have become.
    foreign = [name for name in _entries(path) if finished_name(name) not in CURVES]
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


def _foreign_to_card(path: Path, own: frozenset[str]) -> str | None:
    text = path.read_bytes()
    return None if not text or CARD_PART.encode() in text else "exists and is no model card of this project"


def _json(path: Path) -> dict:
    """The JSON object in a file; {} if there is none."""
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


MODEL = Kind(folder=True, foreign=_foreign_to_model)  # a model or adapters, replaced as a whole
EXPORT = Kind(folder=True, foreign=_foreign_to_export)  # for other engines, replaced as a whole
WORK = Kind(folder=True, foreign=_foreign_to_work, replaced="checkpoints")  # only the checkpoints are replaced
REPORTS = Kind(folder=True, foreign=_foreign_to_curves)  # DVCLive removes its content
ANSWERS = Kind(folder=False, foreign=_foreign_to_answers)
PAGE = Kind(folder=False, foreign=_foreign_to_page)
CARD = Kind(folder=False, foreign=_foreign_to_card)
OUTPUT = Kind(folder=True, foreign=lambda path, own: None)  # of DVC, at a path that no knob sets
