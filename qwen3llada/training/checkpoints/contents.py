"""What a checkpoint holds beside the large tensors, and what is done once it is written."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwen3llada.training.checkpoints.folder import OUTCOME_FILE, rotate
from qwen3llada.training.run import Run

DATA_FILE = "data.pt"


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What takes all ranks to know, and rank 0 writes."""

    points: list[dict[str, Any]]  # of the curves
    random: list[dict[str, Any]]  # state of each rank's random generators
    carried: dict[str, Any] | None  # by the data of the run


def write_small_files(run: Run, folder: Path, moments: dict[str, Any], known: Gathered) -> None:
    """Write tokenizer, optimiser, random generators, curves and the state of the data. On rank 0 alone.

    moments: result of `optimizer_state` or `optimizer_shards`.
    """
    run.tokenizer.save_pretrained(folder)
    optimizer = {
        "optimizer": moments,
        "schedule": run.lr_schedule.state_dict(),
        "scaler": run.accelerator.scaler.state_dict() if run.accelerator.scaler else None,
    }
    files: dict[str, Any] = {"optimizer.pt": optimizer, "random.pt": known.random}
    files |= {} if known.carried is None else {DATA_FILE: known.carried}
    for name, content in files.items():
        # Given a path, torch.save would replace the system's error on opening; given a file, it keeps the error.
        with open(folder / name, "wb") as file:
            torch.save(content, file)
    lines = "".join(json.dumps(point) + "\n" for point in known.points)
    (folder / "curves.jsonl").write_text(lines, encoding="utf-8")


def tidy(run: Run, own: Path) -> None:
    """After a checkpoint in `own`, the run's folder: the run has not ended, and checkpoints beyond the limit go."""
    (own / OUTCOME_FILE).unlink(missing_ok=True)
    best = int(run.state.best["step"]) if run.state.best else None
    rotate(own, keep=run.params.save_total_limit, best_step=best)


def checkpoint_bytes(run: Run) -> int:
    """Approximate size of a checkpoint: the saved weights, and two moments of the trained ones."""
    saved = run.model.parameters() if run.adapted is None else run.parameters()
    return sum(p.numel() * p.element_size() for p in [*saved, *run.parameters(), *run.parameters()])
