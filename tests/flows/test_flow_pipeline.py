"""The flow on a real project and a real Prefect server."""

import threading

import psutil
import pytest

from flows.graph import Policy, read_stages

pytestmark = pytest.mark.timeout(900)  # where the machine is busy, the server takes minutes


def test_stages_come_from_dvc_in_its_order(project):
    assert [stage.name for stage in read_stages([])] == ["prepare", "train", "measure"]
    assert [stage.name for stage in read_stages(["train"])] == ["prepare", "train"]
    only = read_stages(["measure", "train"], upstream=False)
    assert [stage.name for stage in only] == ["train", "measure"]
    assert only[0].policy == Policy(limit="gpu", retries=2, retry_seconds=0.1, grace_seconds=20)
    with pytest.raises(ValueError, match=r"dvc.yaml: .*nothing"):
        read_stages(["nothing"])


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


def test_a_killed_trainer_is_retried_and_resumes(project):
    project.set(steps=60)

    def kill():
        project.wait_until(project.has_checkpoint)
        psutil.Process(project.lives()[0]).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    answer = project.flow_run()
    killer.join()
    assert answer["result"] == {"prepare": "unchanged", "train": "ran", "measure": "ran"}, answer
    assert len(project.lives()) == 2
    assert project.model() == project.undisturbed_model(60)
    assert '"metric": "metrics.json:loss"' in answer["artifacts"]["metrics"]
    assert answer["artifacts"]["progress-train"] == 100
    assert answer["slots"] == 0
    assert answer["scheduled"] >= 3  # a cron deployment has runs ahead of it
