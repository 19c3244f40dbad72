"""What a checkpoint was made from: the parameters that matter, and hashes of the data, the first model and the code."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwen3llada.corpus.packing import TOKENS_FILE
from qwen3llada.corpus.stream import STREAM_FILE
from qwen3llada.training.params import TrainParams

PACKAGE = Path(__file__).parents[1]
# The code that decides which weights come out of a run.
CODE = ("artifacts.py", "section.py", "diffusion", "modeling", "corpus", "evaluation/batch_loss.py", "training")

# Knobs that change nothing in the weights: where files go, how often something is saved, shown or measured, and how
# the work of a step is divided and computed (the number of samples in a step is compared in their place).
FREE = {
    *("model", "data", "dst", "output_dir", "reports"),
    *("save_steps", "save_total_limit", "resume_from", "logging_steps", "peak_tflops"),
    *("do_eval_loss", "eval_every_steps", "eval_samples"),
    *("micro_batch_size", "gradient_accumulation_steps", "num_workers", "epochs", "max_steps"),
    *("compile", "cuda_graphs", "deterministic", "gradient_checkpointing", "attention.implementation", "adapter.merge"),
}

Fingerprint = dict[str, Any]


def fingerprint(params: TrainParams, *, seed: int, step_size: int, total_steps: int, template: str) -> Fingerprint:
    """What a run's weights depend on, flat. Equal fingerprints: the one may go on from the other's checkpoints.

    Args:
        step_size: samples in an optimiser step, over all micro-batches and processes.
        total_steps: optimiser steps of the whole run, which the learning rate depends on.
        template: prompt template of the data.
    """
    knobs = {key: value for key, value in _flat(params.model_dump(mode="json")) if key not in FREE}
    return knobs | {
        "seed": seed,
        "step_size": step_size,
        "total_steps": total_steps,
        "template": template,
        "data files": hash_files([params.data / "train" / name for name in (TOKENS_FILE, STREAM_FILE)]),
        "model files": hash_files(sorted(params.model.glob("*.safetensors"))),
        "code": hash_files([PACKAGE / name for name in CODE], suffix=".py"),
    }


def differences(ours: Fingerprint, theirs: Fingerprint) -> str:
    """One line that names what differs, "" if nothing does."""
    names = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    return ", ".join(_difference(name, theirs.get(name), ours.get(name)) for name in sorted(names))


def hash_files(paths: Iterable[Path], suffix: str = "") -> str:
    """SHA-256 over the names, relative to each path, and the bytes of all files at and under `paths`."""
    digest = hashlib.sha256()
    for root in paths:
        files = [root] if root.is_file() else sorted(root.rglob(f"*{suffix}"))
        for file in files:
            if file.is_file():
                with open(file, "rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                name = file.relative_to(root.parent).as_posix()
                digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


def _difference(name: str, theirs: Any, ours: Any) -> str:
    if name in ("data files", "model files", "code"):
        return f"other {name}"
    return f"{name} is {theirs!r} there and {ours!r} here"


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, leaf) pairs."""
    pairs = []
    for key, value in tree.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, value))
    return pairs
