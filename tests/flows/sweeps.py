"""Sweeps with Prefect's server and its threads. The variants run no stages; local.py sweeps over real ones."""

import json

import pytest
from prefect.testing.utilities import prefect_test_harness

from flows import sweep
from flows.outcome import Outcome, StageFailedError

pytestmark = pytest.mark.timeout(900)  # on a busy machine the server takes minutes


@pytest.fixture(scope="module", autouse=True)
def server():
    with prefect_test_harness(server_startup_timeout=600):
        yield


@pytest.fixture(autouse=True)
def trained(tmp_path, monkeypatch):
    """Names of the variants that ran, in order. Training of the rate -1 fails."""
    names = []

    def run_stages(stages, *, root, label):
        names.append(root.name)
        if root.name.endswith("-1"):
            raise StageFailedError("train", Outcome("failed", 2, "train.rate: given -1"))
        return {"train": "ran"}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "clone", lambda root, variant: root / variant.name)
    monkeypatch.setattr(sweep, "read_stages", lambda *args, **kwargs: [])
    monkeypatch.setattr(sweep, "run_stages", run_stages)
    monkeypatch.setattr(sweep, "read_metrics", lambda root: {"metrics.json:loss": 0.5})
    monkeypatch.setattr(sweep, "save", lambda *args: None)
    return names


def test_every_variant_of_a_sweep_gets_its_row(trained, tmp_path):
    state = sweep.sweep({"train.rate": ["0.5", "0.6", "0.7"]}, jobs=2, name="rate", return_state=True)
    assert (state.type.value, state.message) == ("COMPLETED", "3 variants")
    assert sorted(trained) == ["rate-0_5", "rate-0_6", "rate-0_7"]
    rows = json.loads((tmp_path / "reports/sweep.json").read_text())["variants"]
    assert [(row["name"], row["error"]) for row in rows] == [(f"rate-0_{i}", None) for i in (5, 6, 7)]


def test_a_variant_that_fails_is_named_and_the_others_run(trained, tmp_path):
    state = sweep.sweep({"train.rate": ["0.5", "-1", "0.7"]}, name="rate", return_state=True)
    assert state.is_failed()
    assert state.message == "rate-1: stage train: train.rate: given -1"
    assert trained == ["rate-0_5", "rate-1", "rate-0_7"]
    rows = json.loads((tmp_path / "reports/sweep.json").read_text())["variants"]
    assert [row["error"] is None for row in rows] == [True, False, True]
