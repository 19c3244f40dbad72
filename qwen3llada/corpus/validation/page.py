"""Validation results for people: a table of the worst offenders, and a page that needs no network."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import new_file
from qwen3llada.corpus.conversations.records import map_record, visible
from qwen3llada.corpus.files.rows import Row

EXCERPT = 100  # characters of a record in a table

_REASONS = {
    "readable": "{unreadable}",
    "structure": "{malformed}",
    "unicode": "{not_unicode}",
    "roles": "its turns are: {roles}",
    "pairs": "its turns are: {roles}; {taught_pairs} of its answers are taught",
    "alternation": "its turns are: {roles}",
    "not_blank": "{blank_texts} blank",
    "control_characters": "{control_characters} control characters",
    "media": "{dropped_media} places of media that are not used",
    "unused_fields": "not used: {unused_fields}",
    "control_tokens": "{control_tokens} texts of control tokens",
    "length": "{excess_tokens} tokens above the limit",
    "leakage": "held-out record {leaked_from} asks the same",
    "duplicates": "equal to record {duplicate_of}",
    "conflicts": "same prompt as record {conflicts_with}, another answer",
}


@dataclass(frozen=True, slots=True)
class Offender:
    """A record that breaks rules: its place, and the reason for each rule."""

    split: str
    number: int
    file: Path
    number_in_file: int
    reasons: dict[str, str]
    excerpt: str = ""


def reason(rule: str, facts: dict[str, Any]) -> str:
    """Why a record with `facts` breaks `rule`."""
    return _REASONS[rule].format_map({**facts, "roles": facts["roles"] or "none"})


def excerpt(row: Row) -> str:
    """The beginning of a record on one line of printable characters."""
    turns = map_record(row.value)["conversations"] if isinstance(row.value, dict) else None
    texts: list[Any] = [t.get("value") for t in turns if isinstance(t, dict)] if isinstance(turns, list) else []
    if row.error is not None:
        text = row.raw or ""
    elif texts and all(isinstance(value, str) for value in texts):
        text = " / ".join(texts)
    else:
        text = json.dumps(row.value, ensure_ascii=False, default=str)
    return visible(text[:EXCERPT]) + ("…" if len(text) > EXCERPT else "")


def text_table(offenders: Sequence[Offender]) -> str:
    """Offenders as lines of text: index, rules with reasons, excerpt."""
    rows = [
        (f"{o.split} {o.number}", "; ".join(f"{rule}: {why}" for rule, why in o.reasons.items()), o.excerpt)
        for o in offenders
    ]
    rows = [("record", "breaks", "excerpt"), *rows]
    widths = [min(60, max(len(row[i]) for row in rows)) for i in range(2)]
    return "\n".join(f"{record:<{widths[0]}}  {breaks:<{widths[1]}}  {text}".rstrip() for record, breaks, text in rows)


def write_page(path: Path, report: dict[str, Any], offenders: Sequence[Offender]) -> None:
    """Write the report as one self-contained HTML file."""
    splits = [name for name, value in report.items() if isinstance(value, dict) and "rules" in value]
    head = ["<!doctype html><html lang=en><meta charset=utf-8><title>Validation of conversations</title>"]
    head += ["<meta name=viewport content='width=device-width, initial-scale=1'>", _STYLE]
    verdict = "passed" if report["passed"] else "failed"
    body = [f"<h1>Validation of conversations: <span class={verdict}>{verdict}</span></h1>"]
    body += [f"<p class=failed>{html.escape(problem)}</p>" for problem in report["problems"]]
    body += [f"<p class=warning>{html.escape(warning)}</p>" for warning in report["warnings"]]
    aside = sum(report[split]["invalid"] for split in splits)
    if report["passed"] and aside:
        body.append(f"<p>{aside:,} invalid records are set aside in reports/quarantine.jsonl; the others are used.</p>")
    for split in splits:
        facts = report[split]
        body.append(f"<h2>{split}: {facts['records']:,} records, {facts['invalid']:,} invalid</h2>")
        body.append(_rules(facts["rules"]))
    if report["drift"]:
        body.append("<h2>Divergence from the baseline (bits)</h2>")
        body.append(_table(("distribution", "divergence"), [(k, f"{v:.4f}") for k, v in report["drift"].items()]))
    if offenders:
        body.append("<h2>Records that break rules</h2>")
        found = [
            (f"{o.split} {o.number}", f"{o.file}: {o.number_in_file}", f"{rule}: {why}", o.excerpt)
            for o in offenders
            for rule, why in o.reasons.items()
        ]
        body.append(_table(("record", "file: record in it", "breaks", "excerpt"), found))
    # The index page of Data Docs needs a script from the network. The pages that it lists work without.
    if pages := sorted((path.parent / "data_docs" / "validations").rglob("*.html")):
        links = [(page.relative_to(path.parent).as_posix(), page.relative_to(path.parent).parts[2]) for page in pages]
        shown = ", ".join(f"<a href='{html.escape(link)}'>{html.escape(name)}</a>" for link, name in links)
        body.append(f"<p>Results in Great Expectations' own form: {shown}</p>")
    with new_file(path) as temporary:
        temporary.write_text("\n".join([*head, *body]) + "\n", encoding="utf-8")


def _rules(rules: dict[str, Any]) -> str:
    rows = [
        (
            name,
            _state(rule),
            f"{rule['broken']:,}",
            f"{rule['judged']:,}",
            f"{100 * rule['mostly']:g} %",
            rule["severity"],
        )
        for name, rule in rules.items()
    ]
    return _table(("rule", "result", "broken", "judged", "must keep it", "severity"), rows)


def _state(rule: dict[str, Any]) -> str:
    failed = "failed" if rule["severity"] == "error" else "warning"
    return f"not evaluated: {rule['error']}" if rule["error"] else "passed" if rule["passed"] else failed


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        numbers = ("judged", "broken", "must keep it", "divergence")
        marks = [" class=number" if name in numbers else " class=name" if name == "rule" else "" for name in head]
        if tag == "td" and "result" in head:
            place = head.index("result")
            marks[place] = f" class={row[place]}" if row[place] in ("passed", "warning") else " class=failed"
        return "".join(f"<{tag}{mark}>{html.escape(cell)}</{tag}>" for mark, cell in zip(marks, row, strict=True))

    lines = [f"<tr>{cells('th', head)}</tr>", *(f"<tr>{cells('td', row)}</tr>" for row in rows)]
    return "<div class=scroll><table>" + "\n".join(lines) + "</table></div>"


_STYLE = """<style>
:root { color-scheme: light dark; --line: #d0d0d0; --good: #176f2c; --bad: #b3261e; --odd: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --good: #7bd88f; --bad: #ff8a80; --odd: #ffc766; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid var(--line); padding: .3em 1em .3em 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; min-width: 4.5em; } .name { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.passed { color: var(--good); } .warning { color: var(--odd); } .failed { color: var(--bad); font-weight: 600; }
</style>"""
