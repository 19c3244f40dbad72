"""From rule results to a verdict: which records are invalid, and why the gate stops."""

from collections import Counter
from typing import Any

import numpy as np

from qwen3llada.corpus.files.reading import SPLITS
from qwen3llada.corpus.validation.expectations import RuleResult
from qwen3llada.corpus.validation.fact_table import SplitFacts
from qwen3llada.corpus.validation.rules import ValidateParams

NAMED = 12  # unused fields named in a line; reports/validation.json lists all


def invalid_records(results: dict[str, RuleResult], records: int) -> np.ndarray:
    """[records] bool: whether the record breaks a rule with severity error."""
    mask = np.zeros(records, bool)
    for result in results.values():
        if result.severity == "error":
            mask[result.broken] = True
    return mask


def build_report(
    results: dict[str, dict[str, RuleResult]],
    facts: dict[str, SplitFacts],
    drifted: dict[str, float],
    drifting: RuleResult | None,
    params: ValidateParams,
) -> dict[str, Any]:
    """Content of reports/validation.json: counts per rule and split, problems that stop the gate, warnings."""
    report: dict[str, Any] = {"passed": True, "on_invalid": params.on_invalid, "problems": [], "warnings": []}
    for split in SPLITS:
        records = len(facts[split].table)
        invalid = int(invalid_records(results[split], records).sum())
        fraction = invalid / records if records else 0.0
        rules = {name: _described(result) for name, result in results[split].items()}
        report[split] = {"records": records, "invalid": invalid, "invalid_fraction": round(fraction, 6), "rules": rules}
        unused = unused_fields(facts[split])
        report[split]["unused_fields"] = unused
        report["problems"] += _problems(split, results[split], records, invalid, params, unused)
        report["warnings"] += [
            _broken(split, result, unused)
            for result in results[split].values()
            if result.severity == "warning" and not result.passed and result.error is None
        ]
    report["drift"] = {name: round(value, 6) for name, value in drifted.items()}
    if drifting is not None and drifting.error is not None:
        report["problems"].append(f"rule drift could not be evaluated: {drifting.error}")
    elif drifting is not None and not drifting.passed:
        far = [f"{name} {value:.3f}" for name, value in drifted.items() if value > params.max_drift]
        report["warnings"].append(f"train: drifted from the baseline: {', '.join(far)}")
    report["passed"] = not report["problems"]
    return report


def _described(result: RuleResult) -> dict[str, Any]:
    return {
        "severity": result.severity,
        "mostly": result.mostly,
        "passed": result.passed,
        "judged": result.judged,
        "broken": len(result.broken),
        "error": result.error,
    }


def unused_fields(facts: SplitFacts) -> dict[str, int]:
    """Fields whose text is in no conversation, with the number of records in a split; most frequent first."""
    counts: Counter[str] = Counter()
    for names, times in facts.table["unused_fields"].value_counts().items():
        counts.update(dict.fromkeys(str(names).split(", "), int(times)))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _broken(split: str, result: RuleResult, unused: dict[str, int]) -> str:
    """One line: how many records break a rule; for `unused_fields` also which fields, and how often."""
    line = f"{split}: {len(result.broken)} of {result.judged} records break {result.rule}"
    if result.rule != "unused_fields":
        return line
    named = [f"{name} ({count})" for name, count in unused.items()]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"{line}: {', '.join(named[:NAMED])}{more}"


def _problems(
    split: str,
    results: dict[str, RuleResult],
    records: int,
    invalid: int,
    params: ValidateParams,
    unused: dict[str, int],
) -> list[str]:
    """Reasons to stop the gate for a split."""
    problems = [
        f"{split}: rule {r.rule} could not be evaluated: {r.error}" for r in results.values() if r.error is not None
    ]
    if not records:
        return [*problems, f"{split}: no records"]
    if params.on_invalid == "fail":
        problems += [
            _broken(split, r, unused)
            for r in results.values()
            if r.severity == "error" and not r.passed and r.error is None
        ]
    if invalid == records:
        problems.append(f"{split}: no record is valid")
    elif invalid > params.max_invalid_fraction * records:
        limit = params.max_invalid_fraction
        allowed = int(limit * records)
        problem = f"{split}: {invalid} of {records} records are invalid, more than max_invalid_fraction={limit} allows"
        problem += f" ({allowed} records)"
        if not allowed and limit:
            problem += f"; with {records} records in {split} one is too many: it is small, hold out more records"
        problems.append(problem)
    return problems
