"""One page about a run: `reports/report.html`, self-contained and offline, and its short form `reports/summary.md`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from qwen3llada.artifacts import new_file, read_json, read_jsonl
from qwen3llada.evaluation.report_charts import number
from qwen3llada.evaluation.report_data import (
    LEVELS,
    PHASES,
    as_yaml_lines,
    flat_numbers,
    level_chart,
    loss_table,
    read_curves,
    read_sweep,
    training_charts,
)
from qwen3llada.evaluation.report_replay import record_answers
from qwen3llada.evaluation.report_run import compare_with_previous, data_sources, hardware, revision
from qwen3llada.sampling.params import SampleParams
from qwen3llada.sampling.trace import environment
from qwen3llada.section import Section

TEMPLATES = Path(__file__).parent
MACHINE_DEPENDENT = ("tokens_per_second", "seconds", "mfu", "peak_memory_gib")  # no news about the model


class ReportParams(Section):
    """What the report shows."""

    samples: int = Field(default=24, ge=0, le=10_000, description="Held-out answers shown, 0 to 10,000")
    played: int = Field(default=4, ge=0, le=1000, description="Answers whose denoising can be played, 0 to 1,000")


def write_report(
    reports: Path,
    params: ReportParams,
    *,
    parameters: Mapping[str, Any],
    source: Path,
    model: Path,
    heldout: Path,
    sample: SampleParams,
    seed: int,
) -> Path:
    """Write `reports`/report.html and summary.md from what the other stages left in `reports`.

    Args:
        parameters: all of params.yaml. source: the record of `download`.
        model, heldout, sample, seed: to record how answers come about, for playing.

    Returns: the path of the page. `reports`/history.jsonl remembers the run, for comparison by the next one.
    Raises: FileNotFoundError or ValueError in one line, naming a file that a stage should have written.
    """
    numbers = {name: read_json(reports / file) for name, file in RESULTS.items()}
    metrics = {k: v for k, v in flat_numbers(numbers).items() if k.split(".")[-1] not in MACHINE_DEPENDENT}
    leaves = as_yaml_lines(parameters)
    run = {"revision": revision(), "parameters": dict(leaves), "metrics": metrics}
    samples = list(read_jsonl(reports / "samples.jsonl"))
    context = {
        "revision": run["revision"],
        "parameters": leaves,
        "hardware": hardware(),
        "sources": data_sources(source),
        "analyze": read_json(reports / "analyze.json"),
        "validation": read_json(reports / "validation.json"),
        "tokens": read_json(reports / "tokenize_pack/tokenize.json"),
        "phases": PHASES,
        "charts": {phase: training_charts(read_curves(reports / phase)) for phase in PHASES},
        "losses": loss_table(numbers["eval_loss"]),
        "levels": level_chart({PHASES[phase]: numbers["eval_loss"][phase].get(LEVELS, {}) for phase in PHASES}),
        "numbers": numbers,
        "samples": samples[: params.samples],
        "replay": record_answers(model, heldout, sample, count=params.played, seed=seed),
        "previous": compare_with_previous(reports / "history.jsonl", run),
        "sweep": read_sweep(reports / "sweep.json", _named_by_file(numbers)),
    }
    for name in ("report.html", "summary.md"):
        _render(name, context, reports / name)
    return reports / "report.html"


RESULTS = {
    "pretrain": "pretrain/summary.json",
    "sft": "sft/summary.json",
    "eval_loss": "eval_loss.json",
    "sample": "sample.json",
}


def _named_by_file(numbers: Mapping[str, Any]) -> dict[str, float]:
    """All numbers by the names that DVC's metrics have in a sweep: `reports/FILE:key`."""
    files = {name: f"reports/{file}" for name, file in RESULTS.items()}
    return {f"{files[name]}:{key}": n for name, tree in numbers.items() for key, n in flat_numbers(tree).items()}


def _render(name: str, context: Mapping[str, Any], path: Path) -> None:
    """Fill the template `name`.jinja and write the result."""
    pages = environment(TEMPLATES)
    pages.filters["number"] = number
    text = pages.get_template(f"{name}.jinja").render(context)
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
