"""One page about a run: `reports/report.html`, self-contained and offline, and its short form `reports/summary.md`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import new_file, read_jsonl
from qwen3llada.errors import InputError
from qwen3llada.evaluation.params import ReportParams
from qwen3llada.evaluation.report_charts import number
from qwen3llada.evaluation.report_data import (
    LEVELS,
    PHASES,
    as_yaml_lines,
    flat_numbers,
    level_chart,
    loss_table,
    read_curves,
    read_object,
    read_sweep,
    training_charts,
)
from qwen3llada.evaluation.report_replay import record_answers
from qwen3llada.evaluation.report_run import compare_with_previous, data_sources, hardware, revision
from qwen3llada.sampling.params import SampleParams
from qwen3llada.sampling.trace import environment

TEMPLATES = Path(__file__).parent
MACHINE_DEPENDENT = ("tokens_per_second", "seconds", "mfu", "peak_memory_gib")  # no news about the model


def write_report(
    reports: Path,
    params: ReportParams,
    *,
    runs: Mapping[str, tuple[Path, str]],
    parameters: Mapping[str, Any],
    source: Path,
    model: Path,
    heldout: Path,
    sample: SampleParams,
    seed: int,
) -> Path:
    """Write `reports`/report.html and summary.md from what the other stages left in `reports` and in those of `runs`.

    Args:
        runs: by section (pretrain, sft), the folder of the training run's reports, and `settings_hash` of the
            parameters that it must have been made with.
        parameters: all of params.yaml. source: the record of `download`.
        model, heldout, sample, seed: to record how answers come about, for playing.

    Returns: the path of the page. `reports`/history.jsonl remembers the run, for comparison by the next one.
    Raises: FileNotFoundError or InputError in one line, naming a file that a stage should have written, or that is of
        another run.
    """
    files = {phase: folder / "summary.json" for phase, (folder, _) in runs.items()}
    files |= {name: reports / file for name, file in RESULTS.items()}
    numbers = {name: read_object(file) for name, file in files.items()}
    for phase, (_, settings) in runs.items():
        _check_run(phase, files[phase], numbers[phase], settings)
    metrics = {k: v for k, v in flat_numbers(numbers).items() if k.split(".")[-1] not in MACHINE_DEPENDENT}
    leaves = as_yaml_lines(parameters)
    run = {"revision": revision(), "parameters": dict(leaves), "metrics": metrics}
    samples = list(read_jsonl(reports / "samples.jsonl"))
    context = {
        "revision": run["revision"],
        "parameters": leaves,
        "hardware": hardware(),
        "sources": data_sources(source),
        "analyze": read_object(reports / "analyze.json"),
        "validation": read_object(reports / "validation.json"),
        "tokens": read_object(reports / "tokenize_pack/tokenize.json"),
        "phases": PHASES,
        "charts": {phase: training_charts(read_curves(folder)) for phase, (folder, _) in runs.items()},
        "losses": loss_table(numbers["eval_loss"]),
        "levels": level_chart({PHASES[phase]: numbers["eval_loss"][phase].get(LEVELS, {}) for phase in PHASES}),
        "numbers": numbers,
        "samples": samples[: params.samples],
        "replay": record_answers(model, heldout, sample, count=params.played, seed=seed),
        "previous": compare_with_previous(reports / "history.jsonl", run),
        "sweep": read_sweep(reports / "sweep.json", _named_by_file(numbers, runs)),
    }
    for name in ("report.html", "summary.md"):
        _render(name, context, reports / name)
    return reports / "report.html"


RESULTS = {"eval_loss": "eval_loss.json", "sample": "sample.json"}


def _check_run(phase: str, path: Path, summary: Mapping[str, Any], settings: str) -> None:
    """Raises InputError if a summary is of other parameters than the report is about."""
    if "settings" not in summary:  # of an older version
        print(f"warning: {path} does not say which parameters it was made with", file=sys.stderr)
    elif summary["settings"] != settings:
        raise InputError(
            f"{path}: of another run than the parameters of {phase} describe; run {phase} with them first, or set"
            f" {phase}.reports to the folder of their run"
        )


def _named_by_file(numbers: Mapping[str, Any], runs: Mapping[str, tuple[Path, str]]) -> dict[str, float]:
    """All numbers by the names that DVC's metrics have in a sweep: `FILE:key`."""
    files = {name: f"reports/{file}" for name, file in RESULTS.items()}
    files |= {phase: f"{folder.as_posix()}/summary.json" for phase, (folder, _) in runs.items()}
    return {f"{files[name]}:{key}": n for name, tree in numbers.items() for key, n in flat_numbers(tree).items()}


def _render(name: str, context: Mapping[str, Any], path: Path) -> None:
    """Fill the template `name`.jinja and write the result."""
    pages = environment(TEMPLATES)
    pages.filters["number"] = number
    text = pages.get_template(f"{name}.jinja").render(context)
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
