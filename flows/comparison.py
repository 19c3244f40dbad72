"""Result of a sweep: reports/sweep.json, and its plot."""

import fnmatch
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

RESULT = Path("reports/sweep.json")
PLOT = Path("reports/sweep.svg")
# Metrics that compare variants, best first: a likelihood bound does not depend on the training loss.
METRICS = ("*:sft*nelbo", "*nelbo", "*:sft*guidelines", "*guidelines", "*loss")
HIGHER = ("exact_match", "accuracy", "reward")  # parts of the names of metrics of which more is better


def check_metric(metric: str, files: Collection[str]) -> None:
    """Raise ValueError unless `metric` is `file:key` with one of the files of metrics."""
    file, colon, key = metric.partition(":")
    if not (file in files and colon and key):
        allowed = f"one of {', '.join(files)}" if files else "written by a stage that runs, and none writes metrics"
        raise ValueError(f"{metric=} must be FILE:KEY, with FILE {allowed}")


def choose_metric(rows: Sequence[dict[str, Any]], wanted: str | None) -> str | None:
    """The metric to compare: `wanted`, else the first of `METRICS` that every finished variant has; None without one.

    Raises: ValueError if a finished variant lacks `wanted`.
    """
    found = [set(row["metrics"]) for row in rows if row["metrics"]]
    common = sorted(set.intersection(*found)) if found else []
    if wanted is not None:
        if found and wanted not in common:
            raise ValueError(f"metric={wanted!r} must be one of {', '.join(common)}")
        return wanted
    return next((name for pattern in METRICS for name in common if fnmatch.fnmatch(name, pattern)), None)


def better(metric: str) -> str:
    """Which values of a metric `file:key` are better: "higher" or "lower"."""
    return "higher" if any(word in metric.partition(":")[2] for word in HIGHER) else "lower"


def write_comparison(rows: Sequence[dict[str, Any]], metric: str | None, root: Path = Path()) -> None:
    """Write `reports/sweep.json` and, if there is something to plot, `reports/sweep.svg`."""
    result = {"metric": metric, "better": None if metric is None else better(metric), "variants": list(rows)}
    _write(root / RESULT, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    shown = [row for row in rows if metric is not None and metric in row["metrics"]]
    if metric is not None and shown:
        _plot(shown, metric, root / PLOT)


def _plot(rows: Sequence[dict[str, Any]], metric: str, path: Path) -> None:
    """Plot a bar per variant, best on top."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    direction = better(metric)
    rows = sorted(rows, key=lambda row: row["metrics"][metric], reverse=direction == "lower")
    values = [row["metrics"][metric] for row in rows]
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.45 * len(rows)), layout="constrained")
    bars = axes.barh([row["name"] for row in rows], values, color="#4477aa")
    axes.bar_label(bars, [f"{value:.4g}" for value in values], padding=3)
    axes.set_xlabel(f"{metric} ({direction} is better)")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)
    os.replace(temporary, path)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
