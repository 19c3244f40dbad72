"""The comparison of a sweep's variants: which metric, and which of its values are better."""

import json
import re

import pytest

from flows.comparison import PLOT, RESULT, write_comparison


@pytest.mark.parametrize(
    ("metric", "better", "best"),
    [
        ("reports/evaluate.json:sft.answers_nelbo", "lower", "low"),
        ("reports/eval_loss.json:sft.guidelines", "lower", "low"),
        ("reports/sample.json:exact_match", "higher", "high"),
        ("reports/rl/summary.json:eval_reward", "higher", "high"),
        ("reports/mine.json:test.accuracy", "higher", "high"),
    ],
)
def test_the_best_variant_is_on_top_and_the_axis_says_which_that_is(tmp_path, metric, better, best):
    rows = [
        {"name": name, "metrics": {metric: value}, "error": None} for name, value in (("low", 0.25), ("high", 0.75))
    ]
    (tmp_path / PLOT).parent.mkdir()
    for given in (rows, rows[::-1]):
        write_comparison(given, metric, tmp_path)
        assert json.loads((tmp_path / RESULT).read_text())["better"] == better
        plot = (tmp_path / PLOT).read_text()
        assert f"{metric} ({better} is better)" in plot
        named = re.findall(r"<!-- (low|high) -->", plot)
        assert named[-1] == best  # bars are drawn from below


def test_without_a_metric_no_value_is_better(tmp_path):
    write_comparison([{"name": "a", "metrics": {}, "error": "it failed"}], None, tmp_path)
    assert json.loads((tmp_path / RESULT).read_text())["better"] is None
    assert not (tmp_path / PLOT).exists()
