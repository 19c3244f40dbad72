"""Data that the flow reads from a real project."""

import signal
import subprocess
import sys
from subprocess import Popen

import pytest

from flows import pipeline
from flows.graph import Policy, read_stages
from flows.outcome import StageFailedError
from flows.serve import Service
from flows.workspace import workspace

pytestmark = pytest.mark.timeout(900)  # on a busy machine the server takes minutes


def test_parameters_are_checked_before_the_first_stage(project):
    """Wrong parameters in params.yaml are found by the package's own command; dvc would first remove outputs."""
    with workspace(None, []):
        pass
    project.set(rate=-0.1)
    said = "stage parameters: params.yaml: train.rate: must not be negative"
    with pytest.raises(StageFailedError, match=said), workspace(None, []):
        raise AssertionError("a stage would have run")


def test_stages_come_from_dvc_in_its_order(project):
    assert [stage.name for stage in read_stages([])] == ["prepare", "train", "measure"]
    assert [stage.name for stage in read_stages(["train"])] == ["prepare", "train"]
    only = read_stages(["measure", "train"], upstream=False)
    assert [stage.name for stage in only] == ["train", "measure"]
    assert only[0].policy == Policy(limit="gpu", retries=2, retry_seconds=0.1, grace_seconds=20)


def test_a_mistyped_stage_is_said_before_a_server_starts(project, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "bind_server_to_this_process", lambda: pytest.fail("a server would start"))
    monkeypatch.setattr(sys, "argv", ["pipeline", "--stage", "trian"])
    assert pipeline.main() == 1
    assert capsys.readouterr().err == "error: dvc.yaml: no stage 'trian'; there are prepare, train, measure\n"


def test_what_a_service_starts_listens_to_sigint(monkeypatch):
    """Also if the service itself ignores the signal, as a shell script starts it with `&`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    service = Service(0, 1)
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: Popen(["sleep", "60"], **options))
    try:
        service._start("worker")
        service.started["worker"].send_signal(signal.SIGINT)
        assert service.started["worker"].wait(10) == -signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)
        service.started["worker"].kill()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"retires": 3}, "meta.flow.retires: given 3: Extra inputs are not permitted"),
        ({"retries": -1}, "meta.flow.retries: given -1: Input should be greater than or equal to 0"),
        ({"retry_seconds": 0}, "meta.flow.retry_seconds: given 0: Input should be greater than 0"),
        ({"retries": "many"}, "meta.flow.retries: given 'many': Input should be a valid integer"),
    ],
)
def test_wrong_policies_are_named(settings, said):
    from flows.graph import _stage

    with pytest.raises(ValueError, match=f"dvc.yaml: train: {said}"):
        _stage("train", settings)
