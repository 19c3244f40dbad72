"""The stage `validate`: facts, judgement, reports. The validated data exist only after success."""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import read_json, write_json
from qwen3llada.corpus.files.ordered_map import ordered_map
from qwen3llada.corpus.files.reading import SPLITS, data_files, read_blocks
from qwen3llada.corpus.files.rows import Block
from qwen3llada.corpus.tokens.bare_tokenizer import load_backend
from qwen3llada.corpus.validation.drift import drift
from qwen3llada.corpus.validation.expectations import judge, judge_drift, open_context, write_data_docs
from qwen3llada.corpus.validation.fact_table import SplitFacts, collect
from qwen3llada.corpus.validation.page import Offender, text_table, write_page
from qwen3llada.corpus.validation.quarantine import write_records
from qwen3llada.corpus.validation.record_facts import FactFinder, find_facts
from qwen3llada.corpus.validation.rules import ValidateParams
from qwen3llada.corpus.validation.verdict import build_report
from qwen3llada.errors import InputError
from qwen3llada.modeling.positions import positions


class InvalidConversations(InputError):
    """Validation failed. `table` shows the worst offenders."""

    def __init__(self, message: str, table: str):
        super().__init__(message)
        self.table = table


def validate(
    raw: Path, out: Path, reports: Path, *, model_folder: Path, params: ValidateParams, num_proc: int
) -> dict[str, Any]:
    """Judge the conversations in `raw`/{train,heldout}. On success write the valid ones to `out`/{train,heldout}.

    Reports are written in either case: validation.json (returned), quarantine.jsonl (invalid records, raw and
    complete), and validation/: index.html, data_docs, profile.json. After a failure `out` does not exist.
    Raises: InvalidConversations if a rule failed; InputError if there is nothing to judge, or if an expectation could
    not be evaluated.
    """
    _remove(out)
    backend, control = load_backend(model_folder)
    max_tokens = params.max_tokens or _limit(model_folder)
    baseline = read_json(params.baseline) if params.baseline else None
    files = {split: data_files(raw / split) for split in SPLITS}
    facts: dict[str, SplitFacts] = {}
    for split in reversed(SPLITS):  # held-out data first: training must not contain its prompts
        heldout = facts["heldout"].openings if split == "train" else {}
        finder = FactFinder(backend, control, max_tokens, heldout)
        facts[split] = collect(ordered_map(find_facts, finder, _blocks(files[split]), num_proc))
    _remove(reports / "validation")
    context = open_context(reports / "validation" / "data_docs")
    results = {split: judge(context, split, facts[split].table, params) for split in SPLITS}
    profile = facts["train"].profile.summary()
    drifted = drift(baseline, profile) if baseline is not None else {}
    drifting = judge_drift(context, drifted, params.max_drift) if drifted else None
    report = build_report(results, facts, drifted, drifting, params)
    offenders = write_records(files, facts, results, out if report["passed"] else None, reports)
    write_data_docs(context)
    write_json(reports / "validation" / "profile.json", profile)
    write_page(reports / "validation" / "index.html", report, offenders)
    write_json(reports / "validation.json", report)
    if not report["passed"]:
        setting_aside = params.model_copy(update={"on_invalid": "quarantine"})
        would_pass = build_report(results, facts, drifted, drifting, setting_aside)["passed"]
        raise InvalidConversations(_message(report, offenders, reports, would_pass), text_table(offenders))
    return report


def _blocks(files: list[Path]) -> Iterator[Block]:
    return chain.from_iterable(read_blocks(path) for path in files)


def _limit(model_folder: Path) -> int:
    """Number of positions of the model."""
    limit = positions(model_folder)
    if limit is None:
        raise InputError(f"{model_folder}/config.json: no max_position_embeddings; set validate.max_tokens")
    return limit


def _message(report: dict[str, Any], offenders: list[Offender], reports: Path, would_pass: bool) -> str:
    """One line: the problems, the first offender, the way on, and where to read more.

    would_pass: under `on_invalid: quarantine` the same records would pass.
    """
    shown = "; ".join(report["problems"])
    if offenders:
        first = offenders[0]
        why = "; ".join(f"{rule}: {text}" for rule, text in first.reasons.items())
        shown += f". First: {first.split} record {first.number} ({first.file.name}), {why}: {first.excerpt}"
    if would_pass:
        shown += ". validate.on_invalid=quarantine goes on without them"
    return f"{shown}. See {reports / 'validation' / 'index.html'}"


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
