"""Artifacts of a run in Prefect's user interface: progress, metrics compared to the previous run, samples, report."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TypeGuard
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.environment import child_environment

SUMMARY = Path("reports/summary.md")
SAMPLES = Path("reports/samples.jsonl")
REPORT = Path("reports/report.html")
SAMPLES_SHOWN = 20
PROGRESS_SECONDS = 5.0
_PERCENT = re.compile(r"(\d{1,3})%\|")  # as tqdm prints it


class Progress:
    """Progress artifact of a stage, from the percentages of its progress bars; none if there are no bars."""

    def __init__(self, stage: str) -> None:
        self.key = f"progress-{artifact_key(stage)}"
        self._id: UUID | None = None
        self._shown = -1.0
        self._next = 0.0

    def see(self, lines: list[str]) -> None:
        """Read a batch of output."""
        percents = [int(match[1]) for line in lines if (match := _PERCENT.search(line))]
        if percents and time.monotonic() >= self._next:
            self._show(float(percents[-1]))
            self._next = time.monotonic() + PROGRESS_SECONDS

    def finish(self) -> None:
        """Show 100 percent, after the stage has succeeded."""
        if self._id is not None:
            self._show(100.0)

    def _show(self, percent: float) -> None:
        if self._id is None:
            self._id = create_progress_artifact(percent, key=self.key)  # type: ignore[assignment]
        elif percent != self._shown:
            update_progress_artifact(self._id, percent)
        self._shown = percent


def artifact_key(name: str) -> str:
    """`name` in lower-case letters, digits and dashes, as Prefect requires."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def read_metrics(root: Path = Path()) -> dict[str, Any]:
    """All metrics of the workspace at `root`, `file:key` -> value, from `dvc metrics show`."""
    command = [sys.executable, "-m", "dvc", "metrics", "show", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment(), cwd=root)
    if done.returncode != 0:
        return {}  # no outputs yet
    files = json.loads(done.stdout or "{}").get("", {}).get("data", {})
    return {
        f"{file}:{key}": value
        for file, content in sorted(files.items())
        for key, value in _flat(content.get("data") or {}).items()
    }


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{key}" if prefix else str(key)).items()}


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of metric, value before, value now, change. Changed metrics come first."""
    rows = []
    for name in sorted(before.keys() | after.keys(), key=lambda name: (before.get(name) == after.get(name), name)):
        old, new = before.get(name), after.get(name)
        change = new - old if _is_number(old) and _is_number(new) else None
        rows.append({"metric": name, "before": old, "now": new, "change": change})
    return rows


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def publish_results(before: dict[str, Any]) -> None:
    """Publish the metrics compared to `before`, and samples, summary and report if they exist."""
    if rows := compare(before, read_metrics()):
        create_table_artifact(rows, key="metrics", description="Metrics before this run, and now")
    if SUMMARY.exists():
        create_markdown_artifact(SUMMARY.read_text(encoding="utf-8"), key="summary")
    if SAMPLES.exists():
        with open(SAMPLES, encoding="utf-8") as file:
            samples = [json.loads(line) for line, _ in zip(file, range(SAMPLES_SHOWN), strict=False)]
        create_table_artifact(samples, key="samples", description=f"The first {SAMPLES_SHOWN} of {SAMPLES}")
    if REPORT.exists():
        create_link_artifact(REPORT.resolve().as_uri(), link_text="report", key="report")
