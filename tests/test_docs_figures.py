"""The figures of the documentation: the command that makes them, and the picture of masking and unmasking."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from docs.figures import FIGURES, main
from docs.masking_picture import THEMES, Row, draw
from docs.outputs import ROOT


def test_a_figure_has_to_be_named():
    done = subprocess.run([sys.executable, "-m", "docs.figures"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    allowed = "results, bounds, quality, knobs, chat_frame, block_mask, unmasking"
    assert done.stderr == f"error: no figure named: python -m docs.figures NAME; allowed: {allowed}\n"
    assert ", ".join(FIGURES) == allowed


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["knob"], 2, "error: unknown figure 'knob': python -m docs.figures NAME; allowed: results, bounds, quality"),
        (["knobs", "3"], 2, "error: knobs: 1 arguments given, 0 needed: python -m docs.figures knobs"),
        (
            ["chat_frame", "Why?"],
            2,
            "error: chat_frame: 1 arguments given, 2 needed: python -m docs.figures chat_frame QUESTION STEPS",
        ),
        (["chat_frame", "Why?", "two"], 1, "error: chat_frame: steps='two' must be a number of steps"),
        (["results"], 1, "error: reports/sample.json: no such file; make repro writes it"),
        (["quality"], 1, "error: reports/evaluate/details.json: no such file; make repro writes it"),
    ],
)
def test_an_error_is_one_line(arguments, status, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no model and no reports here
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1


def test_the_tables_of_the_evaluation_are_read_from_its_reports(capsys, tmp_path, monkeypatch):
    found = {f"{kind}_{what}": 1.23449 for kind in ("text", "answers") for what in ("nelbo", "nelbo_error")}
    source = {key.replace("nelbo", "nll"): 7.0 for key in found}
    row = {"unmask": "fixed", "setting": 4, "exact_match": 0.96666, "answer_nll": 0.1, "answer_nll_error": 0.02}
    (tmp_path / "reports/evaluate").mkdir(parents=True)
    evaluated = {"source": source, "pretrain": found, "sft": found}
    (tmp_path / "reports/evaluate.json").write_text(json.dumps(evaluated))
    (tmp_path / "reports/evaluate/details.json").write_text(json.dumps({"quality": [row | {"tokens_per_pass": 1.236}]}))
    monkeypatch.chdir(tmp_path)
    assert main(["bounds"]) == main(["quality"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "| after fine-tuning | 1.234 ± 1.234 | 1.234 ± 1.234 |"
    assert lines[2].endswith("| 7.000 ± 7.000 | 7.000 ± 7.000 |")
    assert lines[-1] == "| fixed | 4 | 0.967 | 0.100 ± 0.020 | 1.24 |"


def test_the_picture_shows_the_rows_in_the_colours_of_its_theme(tmp_path):
    training = [Row(label="t = 0.5", pieces=("A", None))]
    sampling = [Row(label="start", pieces=(None, None)), Row(label="pass 1", pieces=("A", None), new=frozenset({0}))]
    for theme, colours in THEMES.items():
        path = tmp_path / f"{theme}.svg"
        draw(training, sampling, theme, path)
        styles = [element.get("style", "") for element in ElementTree.parse(path).iter()]
        assert sum(f"fill: {colours['mask']}" in style for style in styles) == 4  # one for each masked position
        assert sum(f"fill: {colours['new']}" in style for style in styles) == 1
    drawn = path.read_bytes()
    draw(training, sampling, theme, path)
    assert path.read_bytes() == drawn  # nothing in it depends on the day or the run
