"""One page about a run: `reports/report.html`, for any browser and offline, and its short form `reports/summary.md`.

Both hold results alone, so that the same run gives the same bytes on every machine of one kind: DVC tracks them. What
the machine and the moment decide (revision, hardware, speeds, earlier runs, a sweep) goes to `reports/report_run.js`
beside the page, which DVC does not track and the page loads.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import new_file, read_jsonl, text_digest
from qwen3llada.errors import InputError
from qwen3llada.evaluation.params import ReportParams
from qwen3llada.report.charts import number
from qwen3llada.report.data import (
    LEVELS,
    PHASES,
    as_yaml_lines,
    bound_charts,
    bound_table,
    content_blamed,
    flat_numbers,
    level_chart,
    loss_table,
    read_curves,
    read_object,
    read_quality_speed,
    read_speed,
    read_sweep,
    training_charts,
)
from qwen3llada.report.replay import record_answers
from qwen3llada.report.run_facts import compare_with_previous, data_sources, hardware, revision
from qwen3llada.sampling.params import SampleParams
from qwen3llada.sampling.trace.page import environment

TEMPLATES = Path(__file__).parent
PAGE, SHORT, BESIDE = "report.html", "summary.md", "report_run.js"


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
    """Write `reports`/report.html, summary.md and report_run.js from what the stages left in `reports` and `runs`.

    Args:
        runs: by section (pretrain, sft), the folder of the training run's reports, and `settings_hash` of the
            parameters that it must have been made with.
        parameters: all of params.yaml. source: the record of `download`.
        model, heldout, sample, seed: to record how answers come about, for playing.

    Returns: the path of the page. `reports`/history.jsonl remembers the run, for comparison by the next one.
    Raises: FileNotFoundError or InputError in one line, naming a file that a stage should have written, or that is of
        another run.
    """
    numbers = _numbers(reports, runs)
    leaves = as_yaml_lines(parameters)
    results = _results(reports, numbers, {phase: folder for phase, (folder, _) in runs.items()}) | {
        "parameters": leaves,
        "sources": data_sources(source),
        "samples": list(read_jsonl(reports / "samples.jsonl"))[: params.samples],
        "replay": record_answers(model, heldout, sample, count=params.played, seed=seed),
    }
    run = {"revision": revision(), "parameters": dict(leaves), "metrics": flat_numbers(numbers)}
    circumstances = {
        "phases": PHASES,
        "revision": run["revision"],
        "hardware": hardware(),
        "speeds": {phase: read_speed(folder) for phase, (folder, _) in runs.items()},
        "previous": compare_with_previous(reports / "history.jsonl", run),
        "quality": read_quality_speed(reports),
        "sweep": read_sweep(reports / "sweep.json", _named_by_file(numbers)),
    }
    _write(reports / SHORT, _render(f"{SHORT}.jinja", results))
    page = _render(f"{PAGE}.jinja", results)
    identity = text_digest(page)[:16]
    _write(reports / BESIDE, _script(identity, _render("report_run.html.jinja", circumstances)))
    _write(reports / PAGE, page.replace(IDENTITY, identity))
    return reports / PAGE


RESULTS = {
    "eval_loss": "eval_loss.json",
    "evaluate": "evaluate.json",
    "sample": "sample.json",
}  # the metrics of dvc.yaml
IDENTITY = "{identity of this page}"  # stands in the template where the hash of the page goes


def _numbers(reports: Path, runs: Mapping[str, tuple[Path, str]]) -> dict[str, Any]:
    """The numbers of each training run and of each file of `RESULTS`. Raises InputError for a file of another run."""
    files = {phase: folder / "summary.json" for phase, (folder, _) in runs.items()}
    files |= {name: reports / file for name, file in RESULTS.items()}
    numbers = {name: read_object(file) for name, file in files.items()}
    for phase, (_, settings) in runs.items():
        _check_run(phase, files[phase], numbers[phase], settings)
    return numbers


def _results(reports: Path, numbers: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[str, Any]:
    """What the templates show of the files that the stages left; `folders` are those of the training runs' reports."""
    details = read_object(reports / "eval_loss_details.json")
    return {
        "beside": BESIDE,
        "analyze": read_object(reports / "analyze.json"),
        "validation": read_object(reports / "validation.json"),
        "tokens": read_object(reports / "tokenize_pack/tokenize.json"),
        "phases": PHASES,
        "charts": {phase: training_charts(read_curves(folder)) for phase, folder in folders.items()},
        "losses": loss_table(numbers["eval_loss"], details),
        "levels": level_chart({PHASES[phase]: details[phase].get(LEVELS, {}) for phase in PHASES}),
        "numbers": numbers,
        "details": details,
    } | _bounds(reports, numbers["evaluate"])


def _bounds(reports: Path, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The likelihoods, as the template shows them."""
    path = reports / "evaluate/details.json"
    details = read_object(path)
    with content_blamed(path):
        return {"bounds": bound_table(numbers), "bound_charts": bound_charts(details)}


def _check_run(phase: str, path: Path, summary: Mapping[str, Any], settings: str) -> None:
    """Raises InputError if a summary is of other parameters than the report is about."""
    if "settings" not in summary:  # of an older version
        print(f"warning: {path} does not say which parameters it was made with", file=sys.stderr)
    elif summary["settings"] != settings:
        raise InputError(
            f"{path}: of another run than the parameters of {phase} describe; run {phase} with them first, or set"
            f" {phase}.reports to the folder of their run"
        )


def _named_by_file(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The metrics by the names that DVC gives them in a sweep: `FILE:key`."""
    return {
        f"reports/{file}:{key}": n for name, file in RESULTS.items() for key, n in flat_numbers(numbers[name]).items()
    }


def _script(identity: str, html: str) -> str:
    """The script that fills the page of this identity. ASCII alone, so it has no encoding to get wrong."""
    return f"showRun({json.dumps({'page': identity, 'html': html})});\n"


def _render(template: str, context: Mapping[str, Any]) -> str:
    pages = environment(TEMPLATES)
    pages.filters["number"] = number
    return pages.get_template(template).render(context)


def _write(path: Path, text: str) -> None:
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
