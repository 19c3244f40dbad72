"""The command line of a sweep, and what it refuses before a variant runs."""

import sys

import pytest

from flows import sweep
from flows.comparison import check_metric
from flows.graph import Stage, read_stages

FILES = ["reports/eval_loss.json", "reports/sample.json"]


@pytest.mark.parametrize("axis", ["sft.optim.lr", "sft.optim.lr=", "=1e-3", "a.b,=1", "a.b=1,,2"])
def test_an_axis_without_keys_or_values_is_refused_in_one_line(axis, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["flows.sweep", "--axis", axis])
    monkeypatch.setattr(sweep, "bind_server_to_this_process", lambda: pytest.fail("a server was started"))
    assert sweep.main() == 2
    said = f"error: --axis {axis}: must be KEY[,KEY]=VALUE[,VALUE], such as sft.optim.lr=1e-3,5e-4\n"
    assert capsys.readouterr() == ("", said)


def test_axes_with_the_same_keys_are_refused():
    assert sweep.axes(["a.b,c.d=1,2", "e.f=x=y"]) == {"a.b,c.d": ["1", "2"], "e.f": ["x=y"]}
    with pytest.raises(ValueError, match=r"--axis a.b=2: a.b is given twice"):
        sweep.axes(["a.b=1", "a.b=2"])


@pytest.mark.parametrize(
    "metric", ["exact_match", "reports/sample.json", "reports/sample.json:", "reports/other.json:exact_match", ":a"]
)
def test_a_metric_that_no_stage_writes_is_refused(metric):
    check_metric("reports/sample.json:exact_match", FILES)
    with pytest.raises(ValueError, match=r"must be FILE:KEY, with FILE one of reports/eval_loss.json, reports/sample"):
        check_metric(metric, FILES)
    with pytest.raises(ValueError, match="written by a stage that runs, and none writes metrics"):
        check_metric("reports/sample.json:exact_match", [])


def test_a_metric_is_checked_before_a_variant_runs(monkeypatch):
    monkeypatch.setattr(sweep, "read_stages", lambda targets: [Stage("sample", metrics=("reports/sample.json",))])
    monkeypatch.setattr(sweep, "_run", lambda *args: pytest.fail("a variant was run"))
    state = sweep.sweep.fn({"a.b": ["1"]}, metric="exact_match")
    assert state.is_failed()
    assert state.message == "metric='exact_match' must be FILE:KEY, with FILE one of reports/sample.json"


def test_the_files_of_metrics_are_those_of_dvc_yaml(project):
    found = {stage.name: stage.metrics for stage in read_stages([], root=project.root)}
    assert found == {"prepare": (), "train": (), "measure": ("metrics.json",)}


def test_the_results_are_kept_where_no_variant_has_the_key(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    rows = [{"name": "v", "metrics": {"reports/sample.json:exact_match": 1.0}, "error": None}]
    monkeypatch.setattr(sweep, "read_stages", lambda targets: [Stage("sample", metrics=("reports/sample.json",))])
    monkeypatch.setattr(sweep, "_run", lambda *args: rows)
    state = sweep.sweep.fn({"a.b": ["1"]}, metric="reports/sample.json:exact")
    assert state.is_failed()
    assert "must be one of reports/sample.json:exact_match" in state.message
    assert (tmp_path / "reports/sweep.json").exists()
