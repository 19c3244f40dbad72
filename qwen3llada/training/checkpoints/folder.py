"""Checkpoints: written whole or not at all, and checked before they are read.

    {output_dir}/checkpoints/{run}/          run: twelve digits of the fingerprint, so that runs never share a folder
        outcome.json         what became of the run, once it is known
        step-{N}/
            config.json, *.safetensors, tokenizer …   the model in Hugging Face format (under LoRA: the adapters)
            optimizer.pt         moments by parameter name, the LR schedule, the loss scaler
            random.pt            state of each process's random generators
            curves.jsonl         all points of the curves so far
            trainer_state.json   epoch, global_step, epoch_batch, cursors, best, fingerprint, size and SHA-256 of each
                                 file, and its own SHA-256

Tensors are stored whole, by parameter name, however they are spread over processes, so a checkpoint can be resumed by
another number of processes and under another strategy.
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
from qwen3llada.training.checkpoints.fingerprint import Fingerprint, short

log = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
OUTCOME_FILE = "outcome.json"
STEP = "step-"
HASH_THREADS = 4  # hashing is bound by memory and disk; more gain nothing

# finished: the final model was exported. left: another run in the same output_dir finished later.
Outcome = Literal["finished", "left"]


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
    telemetry: dict[str, Any] = field(default_factory=dict)  # what `Monitor.state` gave


def run_folder(output_dir: Path, fingerprint: Fingerprint) -> Path:
    """The folder of all checkpoints of one run."""
    return output_dir / "checkpoints" / short(fingerprint)


def step_folder(run: Path, step: int) -> Path:
    return run / f"{STEP}{step}"


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved, by the name of its folder."""
    return int(checkpoint.name.removeprefix(STEP))


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run's folder, oldest step first."""
    found = [p for p in run.glob(f"{STEP}*") if p.name.removeprefix(STEP).isdecimal()]
    return sorted(found, key=step_of)


def runs(output_dir: Path) -> Iterator[Path]:
    """The folders of all runs that have checkpoints, the one that saved last first."""
    found = [folder for folder in output_dir.glob("checkpoints/*") if checkpoints(folder)]
    yield from sorted(found, key=lambda run: max(p.stat().st_mtime for p in checkpoints(run)), reverse=True)


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
        tree = {**asdict(state), "files": files}
        text = json.dumps(tree | {"sha256": _own_hash(tree)}, indent=2, allow_nan=False)
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")


def read_state(folder: Path, *, whole: bool = True) -> TrainerState:
    """The state of a checkpoint whose files are all there, with the bytes that were written.

    `whole=False`: of the files, only that of the state is looked at.

    Raises: CheckpointError naming the folder and what is missing, cut off or changed.
    """
    tree = _state_tree(folder)
    files: dict[str, dict[str, Any]] = tree.pop("files")
    if whole:
        _check_files(folder, files)
    return TrainerState(**tree)


def read_outcome(run: Path) -> Outcome | None:
    """What became of a run; None as long as it is to go on."""
    try:
        return read_json(run / OUTCOME_FILE)["outcome"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged note says nothing: the run's checkpoints then block others until somebody decides


def finish(output_dir: Path, ours: Fingerprint) -> None:
    """Note that our run has finished, and that earlier ones, which were never finished, were left for it."""
    own = run_folder(output_dir, ours)
    for run in runs(output_dir):
        if run == own or read_outcome(run) is None:
            write_json(run / OUTCOME_FILE, {"outcome": "finished" if run == own else "left"})


def rotate(run: Path, *, keep: int, best_step: int | None) -> None:
    """Remove the checkpoints in a run's folder but the newest `keep` and that of `best_step`."""
    own = checkpoints(run)
    for folder in own[:-keep]:
        if step_of(folder) != best_step:
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint. Killed halfway, this leaves a folder of another name, which `collect_remains` removes."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    shutil.rmtree(aside)


def collect_remains(output_dir: Path) -> None:
    """Remove what processes that were killed while they saved or removed a checkpoint have left."""
    for run in [folder for folder in output_dir.glob("checkpoints/*") if folder.is_dir()]:
        for old in run.glob(f".{STEP}*.old"):  # stepped aside for a new one, which may not have come
            name = old.name.removeprefix(".").removesuffix(".old")
            if not (run / name).exists():
                os.rename(old, run / name)
        halves = [folder for folder in checkpoints(run) if not (folder / STATE_FILE).exists()]  # the last file written
        for remains in (*run.glob(f".{STEP}*"), *halves):
            log.warning("%s: removed, it is the rest of a checkpoint", remains)
            shutil.rmtree(remains)


def describe_others(output_dir: Path, ours: Fingerprint) -> str:
    """What the checkpoints of other runs take, in one line; "" if there are none. Only their owner removes them."""
    own = run_folder(output_dir, ours)
    sizes = {
        run: sum(p.stat().st_size for p in run.rglob("*") if p.is_file()) for run in runs(output_dir) if run != own
    }
    if not sizes:
        return ""
    listed = [f"{run.name} ({read_outcome(run) or 'not finished'}, {size / 1e9:.3g} GB)" for run, size in sizes.items()]
    return f"checkpoints of other runs in {output_dir / 'checkpoints'}, yours to remove: {', '.join(listed)}"


def _state_tree(folder: Path) -> dict[str, Any]:
    """The content of the state's file, which is as it was written. Raises: CheckpointError."""
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
    """Raises: CheckpointError naming the first of `files` that is not as it was written."""
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
