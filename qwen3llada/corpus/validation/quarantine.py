"""Output of judged records: valid ones to the validated data, invalid ones, raw and complete, to the quarantine."""

import json
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada.artifacts import new_file, new_folder
from qwen3llada.corpus.conversations.records import map_record
from qwen3llada.corpus.files.reading import SPLITS, read_blocks
from qwen3llada.corpus.files.rows import Block, Row
from qwen3llada.corpus.validation.expectations import RuleResult
from qwen3llada.corpus.validation.fact_table import SplitFacts
from qwen3llada.corpus.validation.page import Offender, excerpt, reason
from qwen3llada.corpus.validation.verdict import invalid_records
from qwen3llada.errors import InputError

SHOWN = 20  # offenders in a table


def write_records(
    files: dict[str, list[Path]],
    facts: dict[str, SplitFacts],
    results: dict[str, dict[str, RuleResult]],
    out: Path | None,
    reports: Path,
) -> list[Offender]:
    """Write invalid records to the quarantine and, if `out` is given, valid ones to it. Returns offenders to show."""
    offenders: list[Offender] = []
    with ExitStack() as stack:
        quarantine = stack.enter_context(_text_file(stack.enter_context(new_file(reports / "quarantine.jsonl"))))
        folder = stack.enter_context(new_folder(out)) if out is not None else None
        for split in SPLITS:
            invalid = invalid_records(results[split], len(facts[split].table))
            shown = _worst(split, facts[split], results[split])
            valid = None
            if folder is not None:
                (folder / split).mkdir()
                valid = stack.enter_context(_text_file(folder / split / "conversations.jsonl"))
            number = 0
            for block in chain.from_iterable(map(read_blocks, files[split])):
                for offset, row in enumerate(block.rows()):
                    if number in shown:
                        shown[number] = replace(shown[number], excerpt=excerpt(row))
                    if invalid[number]:
                        offender = _offender(split, number, facts[split], results[split], errors_only=True)
                        quarantine.write(_quarantined(offender, block, offset, row) + "\n")
                    elif valid is not None:
                        valid.write(json.dumps(_record(row), ensure_ascii=False) + "\n")
                    number += 1
            if number != len(invalid):
                raise InputError(f"{files[split][0].parent}: {number} records, {len(invalid)} when they were judged")
            offenders += shown.values()
    return offenders


def _text_file(path: Path) -> Any:
    return open(path, "w", encoding="utf-8")


def _record(row: Row) -> dict[str, Any]:
    record = map_record(row.value)
    return record if record["system"] else {"conversations": record["conversations"]}


def _quarantined(offender: Offender, block: Block, offset: int, row: Row) -> str:
    """A line of the quarantine: the record's place, the reasons, and the complete record.

    A line of a file is kept as raw text. Bytes that are not UTF-8 become escaped lone surrogates, from which they can
    be restored (`surrogateescape`).
    """
    entry: dict[str, Any] = {"split": offender.split, "index": offender.number, "file": offender.file.name}
    entry |= {"index_in_file": offender.number_in_file, "reasons": offender.reasons}
    if block.lines is not None:
        entry["raw"] = block.lines[offset].decode(errors="surrogateescape")
    elif row.error is not None:
        entry["raw"] = row.raw
    else:
        entry["record"] = row.value
    return json.dumps(entry, default=str)


def _worst(split: str, facts: SplitFacts, results: dict[str, RuleResult]) -> dict[int, Offender]:
    """Records to show: those that break most rules, errors before warnings, and the first of each rule."""
    weights = np.zeros(len(facts.table), np.int64)
    firsts: list[int] = []
    for result in results.values():
        weights[result.broken] += len(results) if result.severity == "error" else 1
        firsts += result.broken[:1].tolist()
    broken = np.flatnonzero(weights)
    worst = broken[np.argsort(-weights[broken], kind="stable")][:SHOWN].tolist()
    return {number: _offender(split, number, facts, results) for number in dict.fromkeys([*worst, *firsts])}


def _offender(
    split: str, number: int, facts: SplitFacts, results: dict[str, RuleResult], *, errors_only: bool = False
) -> Offender:
    row = facts.table.iloc[number].to_dict()
    broken = [
        name
        for name, result in results.items()
        if _contains(result.broken, number) and (result.severity == "error" or not errors_only)
    ]
    path, number_in_file = facts.place(number)
    return Offender(split, number, path, number_in_file, {name: reason(name, row) for name in broken})


def _contains(numbers: np.ndarray, number: int) -> bool:
    """Whether `number` is one of the ascending `numbers`."""
    place = int(np.searchsorted(numbers, number))
    return place < len(numbers) and numbers[place] == number
