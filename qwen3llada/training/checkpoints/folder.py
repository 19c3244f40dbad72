"""Checkpoint folders: written completely or not at all, and verified before they are read.

    {output_dir}/checkpoints/{run}/          run: twelve digits of the fingerprint, so that runs never share a folder
        outcome.json         how the run ended, once it has
        step-{N}/
            config.json, *.safetensors, tokenizer …   the model in Hugging Face format (under LoRA: the adapters)
            optimizer.pt         moments by parameter name, the LR schedule, the loss scaler
            shards/              under FSDP2, instead of safetensors and moments (see `shards`)
            random.pt            state of each rank's random generators
            curves.jsonl         all points of the curves so far
            data.pt              where the data of a step are made in training: those of the current step
            trainer_state.json   epoch, global_step, epoch_batch, cursors, best, fingerprint, size and SHA-256 of each
                                 file, and its own SHA-256

Tensors are stored by parameter name, whole or, under FSDP2, as the ranks' shards. A checkpoint can be resumed with
another number of ranks and another strategy.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen3llada.artifacts import new_folder, read_json, write_json
from qwen3llada.errors import InputError
from qwen3llada.training.checkpoints.fingerprint import HASH_THREADS, Fingerprint, short

log = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
OUTCOME_FILE = "outcome.json"
STEP = "step-"

# finished: the final model was exported. left: another run in the same output_dir finished later.
Outcome = Literal["finished", "left"]


class CheckpointError(InputError):
    """A checkpoint is damaged or belongs to another run. The one-line message names it and the reason."""


@dataclass(kw_only=True)
class TrainerState:
    """Position and state of a run after `global_step` optimiser steps."""

    global_step: int = 0
    epoch: int = 0  # of the next step, from 0
    epoch_batch: int = 0  # optimiser steps done in this epoch
    cursors: dict[str, Any] = field(default_factory=dict)  # of streamed data: position -> where it goes on
    best: dict[str, float] | None = None  # {"step", "eval_loss"} of the best measurement on held-out data
    ended: bool = False  # whether the run ended before its last step, because a measurement was good enough
    processes: int = 1
    fingerprint: Fingerprint = field(default_factory=dict)
    telemetry: dict[str, Any] = field(default_factory=dict)  # result of `Monitor.state`


def run_folder(output_dir: Path, fingerprint: Fingerprint) -> Path:
    """The folder of all checkpoints of one run."""
    return output_dir / "checkpoints" / short(fingerprint)


def step_folder(run: Path, step: int) -> Path:
    return run / f"{STEP}{step}"


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved, from its folder's name."""
    return int(checkpoint.name.removeprefix(STEP))


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints in a run's folder, by step."""
    found = [p for p in run.glob(f"{STEP}*") if p.name.removeprefix(STEP).isdecimal()]
    return sorted(found, key=step_of)


def runs(output_dir: Path) -> Iterator[Path]:
    """Folders of all runs with checkpoints, most recently saved first."""
    found = [folder for folder in output_dir.glob("checkpoints/*") if checkpoints(folder)]
    yield from sorted(found, key=lambda run: max(p.stat().st_mtime for p in checkpoints(run)), reverse=True)


def write_checkpoint(
    folder: Path, state: TrainerState, write_files: Callable[[Path], None], *, size: int | None = None
) -> None:
    """Let `write_files(folder)` fill a temporary folder, add the state with all hashes, and rename it to `folder`.

    `size`: approximate number of bytes, for the message about a full disk.
    Raises: OSError in one line if the disk is full or fails. An existing `folder` is then unchanged.
    """
    with new_folder(folder, size=size) as temporary:
        write_files(temporary)
        files = [path for path in temporary.rglob("*") if path.is_file()]
        write_state(temporary, asdict(state), describe_files(temporary, files))


def write_state(folder: Path, state: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """Write the state file. `state`: a `TrainerState` as a dict. `files`: of `describe_files`, of all other files."""
    tree = {**state, "files": dict(sorted(files.items()))}
    text = json.dumps(tree | {"sha256": _own_hash(tree)}, indent=2, allow_nan=False)
    (folder / STATE_FILE).write_text(text, encoding="utf-8")


def describe_files(folder: Path, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """{name within `folder`: {"size", "sha256"}} of each of `paths`."""
    names = [path.relative_to(folder).as_posix() for path in paths]
    return dict(zip(names, _describe(paths), strict=True))


def read_state(folder: Path, *, whole: bool = True) -> TrainerState:
    """The state of a checkpoint, after checking that all files have the bytes that were written.

    `whole=False`: check only the state file.

    Raises: CheckpointError naming the folder and the file that is missing, cut off or changed.
    """
    tree = _state_tree(folder)
    files: dict[str, dict[str, Any]] = tree.pop("files")
    if whole:
        _check_files(folder, files)
    return TrainerState(**tree)


def read_outcome(run: Path) -> Outcome | None:
    """How a run ended; None while it can still go on."""
    try:
        return read_json(run / OUTCOME_FILE)["outcome"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # with a damaged note, the run counts as unfinished until a user decides


def finish(output_dir: Path, ours: Fingerprint) -> None:
    """Mark our run as finished, and all unfinished runs in the same folder as left."""
    own = run_folder(output_dir, ours)
    for run in runs(output_dir):
        if run == own or read_outcome(run) is None:
            write_json(run / OUTCOME_FILE, {"outcome": "finished" if run == own else "left"})


def rotate(run: Path, *, keep: int, best_step: int | None) -> None:
    """Remove a run's checkpoints except the newest `keep` and that of `best_step`."""
    own = checkpoints(run)
    for folder in own[:-keep]:
        if step_of(folder) != best_step:
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint. If killed midway, this leaves a renamed folder, which `collect_remains` removes."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    shutil.rmtree(aside)


def collect_remains(output_dir: Path) -> None:
    """Clean up after processes that were killed while they wrote or removed a checkpoint."""
    for run in [folder for folder in output_dir.glob("checkpoints/*") if folder.is_dir()]:
        for old in run.glob(f".{STEP}*.old"):  # set aside for a new checkpoint, which may not exist
            name = old.name.removeprefix(".").removesuffix(".old")
            if not (run / name).exists():
                os.rename(old, run / name)
        halves = [folder for folder in checkpoints(run) if not (folder / STATE_FILE).exists()]  # the last file written
        for remains in (*run.glob(f".{STEP}*"), *halves):
            log.warning("%s: removed, it is the rest of a checkpoint", remains)
            shutil.rmtree(remains)


def describe_others(output_dir: Path, ours: Fingerprint) -> str:
    """Checkpoints of other runs and their sizes, in one line; "" if there are none. Only their owner removes them."""
    own = run_folder(output_dir, ours)
    sizes = {
        run: sum(p.stat().st_size for p in run.rglob("*") if p.is_file()) for run in runs(output_dir) if run != own
    }
    if not sizes:
        return ""
    listed = [f"{run.name} ({read_outcome(run) or 'not finished'}, {size / 1e9:.3g} GB)" for run, size in sizes.items()]
    return f"checkpoints of other runs in {output_dir / 'checkpoints'}, yours to remove: {', '.join(listed)}"


def _state_tree(folder: Path) -> dict[str, Any]:
    """Content of the state file, verified by its hash. Raises: CheckpointError."""
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder}: damaged or no checkpoint: there is no {STATE_FILE}")
    try:
        tree = read_json(folder / STATE_FILE)
        hashed = tree.pop("sha256")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder}: damaged: {STATE_FILE} cannot be read: {error}") from error
    if hashed != _own_hash(tree):
        raise CheckpointError(f"{folder}: damaged: {STATE_FILE} is not what was written (SHA-256 differs)")
    return tree


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Raises: CheckpointError naming the first of `files` that differs from what was written."""
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


def _own_hash(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _describe(paths: list[Path]) -> list[dict[str, Any]]:
    """{"size", "sha256"} of each file."""

    def describe(path: Path) -> dict[str, Any]:
        with open(path, "rb") as file:
            return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    with ThreadPoolExecutor(HASH_THREADS) as threads:
        return list(threads.map(describe, paths))
