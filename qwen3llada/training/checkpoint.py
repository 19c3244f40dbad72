"""Checkpoints: written whole or not at all, checked before they are read, resumed from only by the run they belong to.

    {output_dir}/checkpoints/step-{N}/
        config.json, *.safetensors, tokenizer …   the model in Hugging Face format (under LoRA: the adapters)
        optimizer.pt         moments by parameter name, the LR schedule, the loss scaler
        random.pt            state of each process's random generators
        curves.jsonl         all points of the curves so far
        trainer_state.json   epoch, global_step, epoch_batch, cursors, best, fingerprint, size and SHA-256 of each file

Tensors are stored whole, by parameter name, however they are spread over processes, so a checkpoint can be resumed by
another number of processes and under another strategy.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import new_folder, read_json
from qwen3llada.errors import InputError
from qwen3llada.training.fingerprint import Fingerprint, differences

log = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
HASH_THREADS = 4  # hashing is bound by memory and disk; more gain nothing


class CheckpointError(InputError):
    """A checkpoint is damaged, or belongs to another run. One line that names it and the reason."""


@dataclass(kw_only=True)
class TrainerState:
    """Where a run stands, after `global_step` optimiser steps."""

    global_step: int = 0
    epoch: int = 0  # of the next step, from 0
    epoch_batch: int = 0  # optimiser steps done in this epoch
    cursors: dict[str, Any] = field(default_factory=dict)  # where a stream of data goes on: position -> cursor
    best: dict[str, float] | None = None  # {"step", "eval_loss"} of the lowest evaluation loss
    processes: int = 1
    fingerprint: Fingerprint = field(default_factory=dict)
    telemetry: dict[str, Any] = field(default_factory=dict)  # sums of the points of the curves begun and not written


def checkpoint_path(output_dir: Path, step: int) -> Path:
    return output_dir / "checkpoints" / f"step-{step}"


def write_checkpoint(
    folder: Path, state: TrainerState, write_files: Callable[[Path], None], *, size: int | None = None
) -> None:
    """Let `write_files(folder)` fill a temporary folder, add the state with all hashes, and rename it to `folder`.

    `size`: about how many bytes will be written, for the error of a full disk.
    Raises: OSError in one line when the disk is full or refuses; what was there before is untouched then.
    """
    with new_folder(folder, size=size) as temporary:
        write_files(temporary)
        names = sorted(p.relative_to(temporary).as_posix() for p in temporary.rglob("*") if p.is_file())
        files = dict(zip(names, _describe([temporary / name for name in names]), strict=True))
        text = json.dumps({**asdict(state), "files": files}, indent=2, allow_nan=False)
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")


def read_state(folder: Path) -> TrainerState:
    """The state of a checkpoint whose files are all there, with the bytes that were written.

    Raises: CheckpointError naming the folder and what is missing, cut off or changed.
    """
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder}: damaged or no checkpoint: there is no {STATE_FILE}")
    try:
        tree = read_json(folder / STATE_FILE)
        files: dict[str, dict[str, Any]] = tree.pop("files")
        state = TrainerState(**tree)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder}: damaged: {STATE_FILE} cannot be read: {error}") from error
    for name, written in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder}: damaged: {name} is missing")
        if path.stat().st_size != written["size"]:
            raise CheckpointError(
                f"{folder}: damaged: {name} has {path.stat().st_size} bytes but {written['size']} were written"
            )
    for name, found in zip(files, _describe([folder / name for name in files]), strict=True):
        if found["sha256"] != files[name]["sha256"]:
            raise CheckpointError(f"{folder}: damaged: {name} is not what was written (SHA-256 differs)")
    return state


def find_checkpoint(resume_from: str, output_dir: Path, ours: Fingerprint) -> tuple[Path, TrainerState] | None:
    """The checkpoint to go on from, checked; None to start anew.

    "": none. "latest": the newest in `output_dir` that is whole and has our fingerprint; others are named in the log,
    with the reason, and passed over. A path: that one.
    Raises: CheckpointError if `resume_from` is a path, and what is there is no checkpoint, damaged, or of another run.
    """
    if not resume_from:
        return None
    if resume_from != "latest":
        return Path(resume_from), _matching_state(Path(resume_from), ours)
    for folder in reversed(list(checkpoints(output_dir))):
        try:
            return folder, _matching_state(folder, ours)
        except CheckpointError as error:
            log.warning("checkpoint passed over: %s", error)
    return None


def checkpoints(output_dir: Path) -> Iterator[Path]:
    """Folders named as checkpoints, oldest step first."""
    found = [p for p in output_dir.glob("checkpoints/step-*") if p.name[len("step-") :].isdecimal()]
    yield from sorted(found, key=lambda path: int(path.name[len("step-") :]))


def rotate(output_dir: Path, ours: Fingerprint, *, keep: int, best_step: int | None) -> None:
    """Remove this run's checkpoints but the newest `keep` and that of `best_step`. Those of other runs stay."""
    own = [folder for folder in checkpoints(output_dir) if _fingerprint_of(folder) == ours]
    kept = {*own[-keep:], checkpoint_path(output_dir, best_step if best_step is not None else -1)}
    for folder in own:
        if folder not in kept:
            # The state goes first: a folder removed halfway is then no checkpoint.
            (folder / STATE_FILE).unlink()
            shutil.rmtree(folder)


def _matching_state(folder: Path, ours: Fingerprint) -> TrainerState:
    foreign = differences(ours, _fingerprint_of(folder) or {}) if (folder / STATE_FILE).is_file() else ""
    if foreign and _fingerprint_of(folder):
        raise CheckpointError(f"{folder}: made by another run: {foreign}")
    return read_state(folder)


def _fingerprint_of(folder: Path) -> Fingerprint | None:
    try:
        return read_json(folder / STATE_FILE)["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _describe(paths: list[Path]) -> list[dict[str, Any]]:
    """{"size", "sha256"} of each file."""

    def describe(path: Path) -> dict[str, Any]:
        with open(path, "rb") as file:
            return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    with ThreadPoolExecutor(HASH_THREADS) as threads:
        return list(threads.map(describe, paths))
