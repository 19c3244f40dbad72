"""The page about a run, `reports/report.html`, which works offline in any browser, and its short form `summary.md`.

Both contain only results, so that the same run gives the same bytes on every machine of one kind; DVC tracks them.
Facts about machine and moment (revision, hardware, speeds, earlier runs, a sweep) go to `reports/report_run.js` beside
the page. DVC does not track that file; the page loads it.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import new_file, read_jsonl, text_digest
from qwen3llada.errors import InputError
from qwen3llada.report.charts import measured, number
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
from qwen3llada.report.params import ReportParams
from qwen3llada.report.replay import record_answers
from qwen3llada.report.rollouts_page import read_post_training
from qwen3llada.report.run_facts import compare_with_previous, data_sources, hardware, revision
from qwen3llada.sampling.params import SampleParams
from qwen3llada.sampling.trace.page import page_templates

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
    post_training: Path | None = None,
) -> Path:
    """Write `reports`/report.html, summary.md and report_run.js from the stages' outputs in `reports` and `runs`.

    Args:
        runs: by section (pretrain, sft), the folder of the training run's reports, and `settings_hash` of the
            parameters that the run must have had.
        parameters: all of params.yaml. source: the record of `download`.
        post_training: reports of a run on rewards, which is no part of this pipeline, to be shown if there is one.
        model, heldout, sample, seed: to record the decoding of answers for the player.

    Returns: the path of the page. `reports`/history.jsonl stores the run, for comparison by the next report.
    Raises: FileNotFoundError or InputError in one line, naming a file that a stage should have written, or that belongs
        to another run.
    """
    numbers = _numbers(reports, runs)
    leaves = as_yaml_lines(parameters)
    answers = list(read_jsonl(reports / "samples.jsonl"))
    results = _results(reports, numbers, {phase: folder for phase, (folder, _) in runs.items()}) | {
        "parameters": leaves,
        "sources": data_sources(source),
        "samples": answers[: params.samples],
        "answered": len(answers),
        "replay": record_answers(model, heldout, sample, count=params.played, seed=seed),
    }
    run = {"revision": revision(), "parameters": dict(leaves), "metrics": flat_numbers(numbers)}
    circumstances = _circumstances(reports, runs, run, numbers, post_training)
    _write(reports / SHORT, _render(f"{SHORT}.jinja", results))
    page = _render(f"{PAGE}.jinja", results)
    identity = text_digest(page)[:16]
    _write(reports / BESIDE, _script(identity, _render("report_run.html.jinja", circumstances)))
    _write(reports / PAGE, page.replace(IDENTITY, identity))
    return reports / PAGE


def _circumstances(
    reports: Path,
    runs: Mapping[str, tuple[Path, str]],
    run: dict[str, Any],
    numbers: dict[str, Any],
    post_training: Path | None,
) -> dict[str, Any]:
    """What report_run.js shows: what depends on the machine or on other runs. Adds `run` to the history."""
    return {
        "phases": PHASES,
        "revision": run["revision"],
        "hardware": hardware(),
        "speeds": {phase: read_speed(folder) for phase, (folder, _) in runs.items()},
        "previous": compare_with_previous(reports / "history.jsonl", run),
        "quality": read_quality_speed(reports),
        "post_training": None if post_training is None else read_post_training(post_training),
        "sweep": read_sweep(reports / "sweep.json", _named_by_file(numbers)),
    }


RESULTS = {
    "eval_loss": "eval_loss.json",
    "evaluate": "evaluate.json",
    "sample": "sample.json",
}  # the metrics of dvc.yaml
IDENTITY = "{identity of this page}"  # placeholder in the template for the hash of the page


def _numbers(reports: Path, runs: Mapping[str, tuple[Path, str]]) -> dict[str, Any]:
    """The numbers of each training run and of each file in `RESULTS`. Raises InputError for a file of another run."""
    files = {phase: folder / "summary.json" for phase, (folder, _) in runs.items()}
    files |= {name: reports / file for name, file in RESULTS.items()}
    numbers = {name: read_object(file) for name, file in files.items()}
    for phase, (_, settings) in runs.items():
        _check_run(phase, files[phase], numbers[phase], settings)
    return numbers


def _results(reports: Path, numbers: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[str, Any]:
    """Data for the templates from the stages' outputs. `folders`: those of the training runs' reports."""
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
    """Raises InputError if a summary belongs to other parameters than the report."""
    if "settings" not in summary:  # written by an older version
        print(f"warning: {path} does not say which parameters it was made with", file=sys.stderr)
    elif summary["settings"] != settings:
        raise InputError(
            f"{path}: of another run than the parameters of {phase} describe; run {phase} with them first, or set"
            f" {phase}.reports to the folder of their run"
        )


def _named_by_file(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The metrics under the names that DVC gives them in a sweep: `FILE:key`."""
    return {
        f"reports/{file}:{key}": n for name, file in RESULTS.items() for key, n in flat_numbers(numbers[name]).items()
    }


def _script(identity: str, html: str) -> str:
    """The script that fills in the page with this identity. Pure ASCII, so that its encoding does not matter."""
    return f"showRun({json.dumps({'page': identity, 'html': html})});\n"


def _render(template: str, context: Mapping[str, Any]) -> str:
    pages = page_templates(TEMPLATES)
    pages.filters |= {"number": number, "measured": measured}
    return pages.get_template(template).render(context)


def _write(path: Path, text: str) -> None:
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
