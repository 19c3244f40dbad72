"""Likelihood bounds of the trained models on held-out text and answers, beside the model they started from."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import qwen3llada.modeling.modeling_qwen3llada  # noqa: F401  # registers our model type for AutoTokenizer
from qwen3llada.artifacts import file_digest, new_file, write_json
from qwen3llada.batches.samples import Spread
from qwen3llada.corpus.tokens.mapped_tokens import load_tokens
from qwen3llada.corpus.tokens.tokenizer import check_data, load_tokenizer
from qwen3llada.errors import InputError
from qwen3llada.evaluation.autoregressive import load_qwen3, sequence_nats
from qwen3llada.evaluation.bound import Bound, per_token
from qwen3llada.evaluation.likelihood import estimate
from qwen3llada.evaluation.params import EvaluateParams
from qwen3llada.evaluation.processes import Processes, join_processes
from qwen3llada.evaluation.quality_speed import as_rows, measure_quality
from qwen3llada.objective.loss_by_level import BUCKET_NAMES, BUCKETS, by_noise_level
from qwen3llada.sampling.dialogue.exact_match import heldout_prompts
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.params import SampleParams

MIDDLES = {name: (i + 0.5) / BUCKETS for i, name in enumerate(BUCKET_NAMES)}
DIGITS = 6  # of what is written: more than any error bar has


@dataclass(frozen=True)
class HeldOut:
    """Held-out sequences of one kind."""

    name: str  # text or answers
    folder: Path
    sequences: list[list[int]]
    prompt_lengths: list[int]


def evaluate_models(
    models: Mapping[str, Path],
    data: Mapping[str, Path],
    source: Path | None,
    params: EvaluateParams,
    sample: SampleParams,
    reports: Path,
) -> dict[str, Any]:
    """Measure, and write `reports`/evaluate.json and, in `reports`/evaluate, details.json and two tables for plots.

    throughput.json beside them is of this machine alone.

    Args:
        models: folders of the models by name. The last one was trained on prompts of the data's template, and answers
            some, for quality against speed. The others may have been trained on text alone.
        data: folders with heldout/: "text", and "answers", which are predicted given their prompts.
        source: folder of the Qwen3 checkpoint that conversion started from, or None.

    Returns: the content of evaluate.json, the same in every process.
    Raises: InputError if a model or data are missing or do not belong together.
    """
    processes = join_processes()
    kinds = [_read(name, folder / "heldout", params.samples) for name, folder in data.items()]
    metrics: dict[str, Any] = {}
    details: dict[str, Any] = {"rounds": params.rounds, "models": {}, "quality": []}
    speeds: list[dict[str, Any]] = []
    measured = ([] if source is None else ["source"]) + list(models)
    for folder, kind in itertools.product(models.values(), kinds):
        check_data(kind.folder, load_tokenizer(folder), None)
    # The last model answers first: a setting that does not fit is found before any bound is computed.
    for name, folder in reversed(list(models.items())):
        text = TextModel.load(folder, bf16=params.bf16, device=processes.device)
        if name == measured[-1]:
            details["quality"], speeds = _quality(text, kinds, params, sample, processes)
        metrics[name], details["models"][name] = _model(text, kinds, params, processes)
        del text  # before the next model is loaded
    if source is not None:
        metrics["source"], details["models"]["source"] = _source(source, kinds, params, processes)
    metrics = {name: metrics[name] for name in measured}
    details["models"] = {name: details["models"][name] for name in measured}
    if processes.is_main:
        _write(reports, metrics, details, speeds)
    return metrics


def _read(name: str, folder: Path, samples: int) -> HeldOut:
    dataset = Spread(load_tokens(folder), samples)
    chosen = [dataset[i] for i in range(len(dataset))]
    pairs = [(sample.tokens.tolist(), sample.prompt_length or 0) for sample in chosen]
    kept = [(tokens, prompt) for tokens, prompt in pairs if len(tokens) > prompt]  # an answer may be cut to nothing
    if not kept:
        raise InputError(f"{folder}: nothing to predict in it")
    return HeldOut(name, folder, [tokens for tokens, _ in kept], [prompt for _, prompt in kept])


def _quality(
    text: TextModel, kinds: Sequence[HeldOut], params: EvaluateParams, sample: SampleParams, processes: Processes
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Quality and speed of answers to the prompts of the last kind. Raises InputError if their template is another."""
    for kind in kinds:
        check_data(kind.folder, text.tokenizer, text.model.config.prompt_template)
    if not params.prompts:
        return [], []
    asked = heldout_prompts(text, kinds[-1].folder, sample.model_copy(update={"samples": params.prompts}))
    quality, speed = measure_quality(text, *asked, params, sample, processes)
    return as_rows(quality), as_rows(speed)


def _model(
    text: TextModel, kinds: Sequence[HeldOut], params: EvaluateParams, processes: Processes
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Metrics and details of one of our models."""
    metrics: dict[str, float | None] = {}
    details: dict[str, Any] = {}
    for kind in kinds:
        found = estimate(
            text.model,
            kind.sequences,
            rounds=params.rounds,
            seed=params.seed,
            prompt_lengths=kind.prompt_lengths,
            batch_tokens=params.batch_tokens,
            share=processes.share,
        ).reduced(processes.sum)
        bound = found.per_token()
        metrics |= _numbers(f"{kind.name}_nelbo", bound)
        levels = by_noise_level(*found.by_level())
        details[kind.name] = _described(bound, len(kind.sequences)) | {
            "by_noise_level": {level: round(value, DIGITS) for level, value in levels.items()}
        }
    return metrics, details


def _source(
    folder: Path, kinds: Sequence[HeldOut], params: EvaluateParams, processes: Processes
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Metrics and details of the Qwen3 checkpoint, whose texts follow its end-of-text token."""
    dtype = torch.bfloat16 if params.bf16 else torch.float32
    model, tokenizer = load_qwen3(folder, dtype=dtype).to(processes.device), load_tokenizer(folder)
    start = tokenizer.bos_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    metrics: dict[str, float | None] = {}
    details: dict[str, Any] = {}
    for kind in kinds:
        nats = processes.sum(
            sequence_nats(
                model,
                kind.sequences,
                kind.prompt_lengths,
                start_token=start,
                batch_tokens=params.batch_tokens,
                share=processes.share,
            )
        )
        lengths = np.array([len(sequence) for sequence in kind.sequences])
        bound = per_token(nats[:, None], lengths - np.array(kind.prompt_lengths))
        metrics |= _numbers(f"{kind.name}_nll", bound)
        details[kind.name] = _described(bound, len(kind.sequences))
    return metrics, details


def _numbers(name: str, bound: Bound) -> dict[str, float | None]:
    return {name: round(bound.nats, DIGITS), f"{name}_error": bound.known_error(DIGITS)}


def _described(bound: Bound, sequences: int) -> dict[str, Any]:
    return {"perplexity": round(bound.perplexity, DIGITS), "tokens": bound.tokens, "sequences": sequences}


def _write(reports: Path, metrics: Any, details: Mapping[str, Any], speeds: Sequence[Mapping[str, Any]]) -> None:
    write_json(reports / "evaluate.json", metrics)
    write_json(reports / "evaluate/details.json", details)
    speed = {"of": file_digest(reports / "evaluate/details.json"), "settings": list(speeds)}
    write_json(reports / "evaluate/throughput.json", speed)
    levels = [
        {"model": name, "data": kind, "noise_level": MIDDLES[level], "cross_entropy": value}
        for name, kinds in details["models"].items()
        for kind, found in kinds.items()
        for level, value in found.get("by_noise_level", {}).items()
    ]
    _write_table(reports / "evaluate/levels.csv", ("model", "data", "noise_level", "cross_entropy"), levels)
    columns = ("unmask", "setting", "tokens_per_pass", "exact_match", "answer_nll")
    _write_table(reports / "evaluate/quality.csv", columns, details["quality"])


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    with new_file(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
