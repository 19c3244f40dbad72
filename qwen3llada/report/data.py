"""Data of the report, read from the outputs of the stages."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import file_digest, read_json, read_jsonl
from qwen3llada.errors import InputError
from qwen3llada.objective.loss_by_level import BUCKET_NAMES
from qwen3llada.report.charts import Point, bar_chart, line_chart

PHASES = {"pretrain": "Pretraining", "sft": "Fine-tuning"}
LEVELS = "by_noise_level"
LEVEL_LABEL = "noise level t"
ANSWERED = "reports/sample.json:exact_match"
THIS_RUN = "this run"
RATE = "train/tokens_per_second"


@contextmanager
def content_blamed(path: Path) -> Iterator[None]:
    """Turn errors about missing or unexpected content of `path` into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: damaged, or not what the stage wrote: {what}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises: FileNotFoundError, or InputError naming a file with something else."""
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise InputError(f"{path}: must hold a JSON object, given {type(tree).__name__}")
    return tree


def read_curves(folder: Path) -> dict[str, list[Point]]:
    """Curves by name (`train/loss`) as points (step, value), as written by the trainer: by DVCLive, or in
    metrics.jsonl.

    Raises: InputError naming a file that is not a curve; FileNotFoundError if the folder has none.
    """
    plots = folder / "plots/metrics"
    if plots.is_dir():
        return {str(p.relative_to(plots).with_suffix("")): _read_table(p) for p in sorted(plots.rglob("*.tsv"))}
    curves: dict[str, list[Point]] = {}
    with content_blamed(folder / "metrics.jsonl"):
        for point in read_jsonl(folder / "metrics.jsonl"):
            for name, value in point.items():
                if name != "step":
                    curves.setdefault(name, []).append((float(point["step"]), float(value)))
    return curves


def _read_table(path: Path) -> list[Point]:
    """A tab-separated file of DVCLive: column `step`, and the value under the curve's name."""
    with content_blamed(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    names = lines[0].split("\t") if lines else []
    if "step" not in names or len(names) < 2:
        raise InputError(f"{path}: must have the columns step and {path.stem}, has {names}")
    step = names.index("step")
    value = names.index(path.stem) if path.stem in names else 1 - step
    with content_blamed(path):
        rows = [line.split("\t") for line in lines[1:]]
        return [(float(row[step]), float(row[value])) for row in rows if row[value]]


def read_speed(folder: Path) -> dict[str, Any] | None:
    """Measurements of the training run on this machine, with a chart of its throughput.

    None if it was not measured here, or belongs to another run than summary.json: DVC can restore a summary from its
    cache, but not the speed.
    """
    if not (folder / "speed.json").is_file():
        return None
    speed = read_json(folder / "speed.json")
    if speed.get("of") != file_digest(folder / "summary.json"):
        return None
    curves = folder / "speed.jsonl"
    points = [p for p in (read_jsonl(curves) if curves.is_file() else ()) if RATE in p]
    throughput = {"speed": [(float(point["step"]), float(point[RATE])) for point in points]}
    return speed | {"chart": line_chart(throughput, x_label="step", y_label="tokens/s", zero=True)}


def training_charts(curves: Mapping[str, list[Point]]) -> dict[str, str]:
    """Charts of a training run by heading, without empty ones."""

    def of(label: str, *, zero: bool = False, **names: str) -> str:
        chosen = {shown.replace("_", " "): curves.get(name, []) for shown, name in names.items()}
        return line_chart(chosen, x_label="step", y_label=label, zero=zero)

    charts = {
        "Loss": of("loss", training="train/loss", held_out="eval/loss"),
        "Loss by noise level": level_chart(
            {name: last_levels(curves, prefix) for name, prefix in (("training", "train"), ("held out", "eval"))}
        ),
        "Learning rate": of("learning rate", lr="train/learning_rate"),
        "Gradient norm": of("gradient norm", norm="train/grad_norm"),
    }
    return {heading: chart for heading, chart in charts.items() if chart}


def last_levels(curves: Mapping[str, list[Point]], prefix: str) -> dict[str, float]:
    """The latest cross-entropy of each bucket of noise levels."""
    named = {name: curves.get(f"{prefix}/{LEVELS}/{name}") for name in BUCKET_NAMES}
    return {name: points[-1][1] for name, points in named.items() if points}


def level_chart(levels: Mapping[str, Mapping[str, float]]) -> str:
    """Cross-entropy at the middle of each bucket, one line per entry."""
    series = {
        name: [((i + 0.5) / len(BUCKET_NAMES), values[key]) for i, key in enumerate(BUCKET_NAMES) if key in values]
        for name, values in levels.items()
    }
    return line_chart(series, x_label=LEVEL_LABEL, y_label="cross-entropy", dots=True)


def flat_numbers(tree: Any, prefix: str = "") -> dict[str, float]:
    """The numbers of a JSON tree by dotted path."""
    if isinstance(tree, bool) or tree is None:
        return {}
    if isinstance(tree, int | float):
        return {prefix: tree}
    if not isinstance(tree, Mapping):
        return {}
    inner = (flat_numbers(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items())
    return {name: value for numbers in inner for name, value in numbers.items()}


def loss_table(losses: Mapping[str, Mapping[str, Any]], details: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Held-out results: a row per model, a column for each number that any model has."""
    columns: list[str] = []
    rows = []
    for phase, results in losses.items():
        numbers = flat_numbers({**results, "samples": details[phase].get("samples")})
        columns += [name for name in numbers if name not in columns]
        rows.append({"name": PHASES.get(phase, phase), "used": details[phase].get("loss_impl"), "numbers": numbers})
    return {"columns": columns, "rows": rows}


def bound_table(numbers: Mapping[str, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """Likelihoods of evaluate.json: a row for each model, with value and standard error of each kind of data.

    A standard error that is not known (null, of a single text) is left out.
    """
    rows = []
    for name, found in numbers.items():
        shown = PHASES.get(name, "Qwen3 that conversion started from, left to right")
        values = {key.rsplit("_", 1)[0]: value for key, value in found.items() if not key.endswith("_error")}
        known = {key: value for key, value in found.items() if key.endswith("_error") and value is not None}
        errors = {key.rsplit("_", 2)[0]: value for key, value in known.items()}
        rows.append({"name": shown, "values": values, "errors": errors})
    return rows


def bound_charts(details: Mapping[str, Any]) -> dict[str, str]:
    """Charts of evaluate/details.json by their heading: loss by noise level, and quality over tokens per pass."""
    levels = {
        f"{PHASES.get(name, name)}, {kind}": found[LEVELS]
        for name, kinds in details["models"].items()
        for kind, found in kinds.items()
        if found.get(LEVELS)
    }
    charts = {"Cross-entropy by noise level": level_chart(levels)}
    for heading, column in (("Exact match", "exact_match"), ("Nats per token of the answers", "answer_nll")):
        series: dict[str, list[Point]] = {}
        for row in sorted(details["quality"], key=lambda row: row["tokens_per_pass"]):
            series.setdefault(row["unmask"], []).append((row["tokens_per_pass"], row[column]))
        charts[heading] = line_chart(series, x_label="tokens per forward pass", y_label=heading.lower(), dots=True)
    return {heading: chart for heading, chart in charts.items() if chart}


def read_quality_speed(folder: Path) -> list[dict[str, Any]]:
    """Quality and speed of each setting of the sampler; none where that was not measured here, as in `read_speed`."""
    path, details = folder / "evaluate/throughput.json", folder / "evaluate/details.json"
    if not path.is_file():
        return []
    with content_blamed(path):
        speed = read_json(path)
        if speed["of"] != file_digest(details):
            return []
        return [row | fast for row, fast in zip(read_object(details)["quality"], speed["settings"], strict=True)]


def read_sweep(path: Path, current: Mapping[str, float]) -> dict[str, Any] | None:
    """The result of the last sweep together with the reported run; None if there was no sweep.

    Args:
        current: metrics of this run under the names that sweeps use, `reports/FILE:key`.

    Returns: {"metric", "better": "higher" or "lower", "columns": the metrics shown, "rows": name, overrides, metrics
        and error of each variant and of this run, "chart"}.
    """
    if not path.exists():
        return None
    with content_blamed(path):
        result = read_json(path)
        metric, rows = result["metric"], list(result["variants"])
        better = result.get("better") or "lower"  # sweeps of earlier versions do not say it
        shown_names = dict.fromkeys(name for name in (metric, ANSWERED) if name)
        columns = [name for name in shown_names if any(name in row["metrics"] for row in rows)]
    if any(name in current for name in columns):
        rows.append({"name": THIS_RUN, "overrides": [], "metrics": current, "error": None})
    shown = {row["name"]: row["metrics"][metric] for row in rows if metric in row["metrics"]}
    ordered = dict(sorted(shown.items(), key=lambda item: item[1], reverse=better == "higher"))
    chart = bar_chart(ordered, label=f"{metric} by variant")
    return {"metric": metric, "better": better, "columns": columns, "rows": rows, "chart": chart}


def as_yaml_lines(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, value as JSON) of each leaf of the parameters."""
    lines = []
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            lines += as_yaml_lines(value, name)
        else:
            lines.append((name, json.dumps(value, ensure_ascii=False, default=str)))
    return lines
