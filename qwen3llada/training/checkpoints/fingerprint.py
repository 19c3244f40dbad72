"""Fingerprint of a run: the parameters that affect weights, and hashes of the data, the first model and the code."""

import ast
import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3llada.artifacts import read_json, text_digest
from qwen3llada.corpus.text.text_stream import CODE as STREAM_MODULES
from qwen3llada.corpus.text.text_stream import STREAM_FILE
from qwen3llada.corpus.tokens.packing import TOKENS_FILE
from qwen3llada.training.run_params import RunParams

if TYPE_CHECKING:
    from qwen3llada.batches.settings import BatchSettings

PACKAGE = Path(__file__).parents[2]
HASH_THREADS = 8  # files hashed at the same time
# Code that determines the resulting weights: data order, noise, loss, model, optimiser, and what a checkpoint stores.
# A test follows the imports of the loop. Each module must be here, or in the test's list of modules without effect.
CODE = (
    "batches",
    "corpus/tokens/mapped_tokens.py",
    "diffusion",
    "objective/batch_loss.py",
    "objective/prepared.py",
    "objective/attention_kernels.py",
    "objective/copies.py",
    "objective/last_layer.py",
    "modeling/attention.py",
    "modeling/masks.py",
    "modeling/params.py",
    "modeling/configuration_qwen3llada.py",
    "modeling/loading.py",
    "modeling/modeling_qwen3llada.py",
    "objective/objective.py",
    "objective/tied_gradient.py",
    "training/start/adapters.py",
    "training/cuda/flash_attention_4.py",
    "training/cuda/fused_attention.py",
    "training/cuda/graph_recorder.py",
    "training/cuda/layer_graphs.py",
    "training/loop.py",
    "training/start/groups_and_schedule.py",
    "training/start/muon.py",
    "training/start/optimizers.py",
    "training/cuda/gradient_sum.py",
    "training/cuda/rotary_kernels.py",
    "training/run.py",
    "training/checkpoints/save_and_restore.py",
    "training/checkpoints/contents.py",
    "training/checkpoints/save_sharded.py",
    "training/checkpoints/shards.py",
    "modeling/streamed.py",
    "training/start/sharding.py",
    "training/start/model_and_processes.py",
    "training/checkpoints/whole_tensors.py",
    "training/start/start.py",
    "training/start/task.py",
)
# Code that tokenizes a stream during training. Data tokenized earlier are compared as files.
STREAM_CODE = tuple(f"corpus/{name}.py" for name in STREAM_MODULES)

# Knobs that do not affect the weights: paths, how often to save, log and evaluate, and how the work of a step is
# divided and computed. The number of samples in a step is compared instead.
FREE = {
    *("model", "data", "dst", "output_dir", "reports"),
    *("save_steps", "save_total_limit", "resume_from", "logging_steps", "peak_tflops", "telemetry.trackers"),
    *("do_eval_loss", "eval_every_steps", "eval_samples"),
    *("micro_batch_size", "gradient_accumulation_steps", "num_workers", "epochs", "max_steps"),
    *("compile", "cuda_graphs", "deterministic", "gradient_checkpointing", "attention.implementation", "adapter.merge"),
}

Fingerprint = dict[str, Any]


def run_fingerprint(
    params: RunParams,
    *,
    batches: "BatchSettings",
    total_steps: int,
    template: str,
    more_code: Iterable[str] = (),
    free: Iterable[str] = (),
) -> Fingerprint:
    """Everything that a run's weights depend on, as a flat dict. Equal fingerprints: checkpoints are interchangeable.

    Args:
        batches: batch settings of training. Compared are the seed, the samples in an optimiser step (over all
            micro-batches and ranks), and the special tokens that are put into sequences.
        total_steps: optimiser steps of the whole run, because the learning rate depends on it.
        template: prompt template of the data.
        more_code: modules that determine the weights beside `CODE`. free: knobs that do not, beside `FREE`.
    """
    decisive = {key: value for key, value in knobs(params).items() if key not in FREE | set(free)}
    streamed = (params.data / "train" / STREAM_FILE).is_file()
    replacements = None if batches.real_tokens is None else batches.real_tokens.tolist()
    return decisive | {
        "seed": batches.seed,
        "step_size": batches.step_size,
        "total_steps": total_steps,
        "template": template,
        "mask_token_id": batches.mask_token_id,
        "eos_token_id": batches.eos_token_id,
        "replacement tokens": None if replacements is None else text_digest(json.dumps(replacements)),
        "data files": _hash_stream(params.data / "train" / STREAM_FILE)
        if streamed
        else hash_files([params.data / "train" / TOKENS_FILE]),
        "model files": hash_files([params.model / "config.json", *sorted(params.model.glob("*.safetensors"))]),
        "code": hash_code([PACKAGE / name for name in (*CODE, *(STREAM_CODE if streamed else ()), *more_code)]),
    }


def knobs(params: RunParams) -> dict[str, Any]:
    """All knobs by their dotted keys."""
    return dict(_flat(params.model_dump(mode="json")))


def differences(ours: Fingerprint, theirs: Fingerprint) -> str:
    """One line that names what differs, "" if nothing does."""
    return ", ".join(_difference(name, theirs.get(name), ours.get(name)) for name in differing(ours, theirs))


def differing(ours: Fingerprint, theirs: Fingerprint) -> list[str]:
    """The names of what differs, sorted."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def short(fingerprint: Fingerprint) -> str:
    """Twelve hexadecimal digits that stand for the fingerprint, as the name of a folder."""
    return text_digest(json.dumps(fingerprint, sort_keys=True))[:12]


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and the bytes of those of `paths` that are files."""
    files = [path for path in paths if path.is_file()]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(HASH_THREADS) as threads:
        for path, found in zip(files, threads.map(_hash_file, files), strict=True):
            digest.update(f"{path.name}\0{found}\n".encode())
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_code(paths: Iterable[Path]) -> str:
    """SHA-256 over the code of the modules at and under `paths`, without comments, docstrings and layout."""
    digest = hashlib.sha256()
    for root in paths:
        for file in [root] if root.is_file() else sorted(root.rglob("*.py")):
            name = file.relative_to(root.parent).as_posix()
            digest.update(f"{name}\0{bare_code(file.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()


@cache
def bare_code(source: str) -> str:
    """`source` without comments, docstrings, field descriptions and imports for type checkers, in normalised layout."""
    return ast.unparse(_Bare().visit(ast.parse(source)))


class _Bare(ast.NodeTransformer):
    """Removes statements that compute nothing."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [statement for statement in body if not _does_nothing(statement)] or [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        typing_only = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if typing_only and not node.orelse else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "Field":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "description"]
        return self.generic_visit(node)


def _does_nothing(statement: ast.AST) -> bool:
    """Whether `statement` is a docstring or `pass`."""
    text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return text or isinstance(statement, ast.Pass)


def _hash_stream(path: Path) -> str:
    """Hash of the description of a stream. The code that tokenizes it is part of the code hash."""
    described = {key: value for key, value in read_json(path).items() if key != "code_sha256"}
    return text_digest(json.dumps(described, sort_keys=True))


def _difference(name: str, theirs: Any, ours: Any) -> str:
    if name in ("data files", "model files", "replacement tokens", "code"):
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
