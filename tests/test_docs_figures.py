"""The figures of the documentation: the command that makes them, and the picture of masking and unmasking."""

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
    allowed = "results, knobs, chat_frame, block_mask, unmasking"
    assert done.stderr == f"error: no figure named: python -m docs.figures NAME; allowed: {allowed}\n"
    assert ", ".join(FIGURES) == allowed


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["knob"], 2, "error: unknown figure 'knob': python -m docs.figures NAME; allowed: results, knobs"),
        (["knobs", "3"], 2, "error: knobs: 1 arguments given, 0 needed: python -m docs.figures knobs"),
        (
            ["chat_frame", "Why?"],
            2,
            "error: chat_frame: 1 arguments given, 2 needed: python -m docs.figures chat_frame QUESTION STEPS",
        ),
        (["chat_frame", "Why?", "two"], 1, "error: chat_frame: steps='two' must be a number of steps"),
        (["results"], 1, "error: reports/sample.json: no such file; make repro writes it"),
    ],
)
def test_an_error_is_one_line(arguments, status, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no model and no reports here
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1


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
