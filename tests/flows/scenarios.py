"""The service as a user runs it: server, worker, schedules, cancellation, death. Minutes, so not part of the suite:

python -m pytest tests/flows/scenarios.py -s
"""

import os
import shutil
import signal
import time

import pytest
from flow_service import PATIENCE, Service
from ruamel.yaml import YAML

from flows.environment import ROOT
from flows.serve import POOL

pytestmark = pytest.mark.timeout(7200)
SECONDS_TO_END = 15
SECONDS_TO_STOP = 60  # with the server and the worker, on two busy cores
FLOW = {"entrypoint": "flows/pipeline.py:pipeline", "work_pool": {"name": POOL}}
ONCE = {"name": "once", **FLOW}
ALONE = {"name": "alone", "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"}, **FLOW}  # as nightly
MINUTE = {"name": "minute", "parameters": {"stages": ["prepare"]}, "schedules": [{"cron": "* * * * *"}], **FLOW}


@pytest.fixture
def service(project, tmp_path):
    shutil.copytree(ROOT / "flows", project.root / "flows")
    deploy(project, ONCE, ALONE)
    made = Service(project, tmp_path / "prefect")
    yield made
    if made.process.poll() is None:
        made.stop()


def deploy(project, *deployments):
    YAML().dump({"name": "scenarios", "deployments": list(deployments)}, project.root / "prefect.yaml")


def stage_processes(project):
    return project.running("flows.guard", "dvc", "train.py")


def test_cancel_and_stop(service, project):
    project.set(steps=20_000)
    run = service.submit()
    project.wait_until(project.has_checkpoint, PATIENCE)

    from prefect.states import Cancelling

    with service.client() as client:
        client.set_flow_run_state(run, Cancelling(), force=True)
    asked = time.monotonic()
    project.wait_until(lambda: not stage_processes(project), PATIENCE)
    seconds = time.monotonic() - asked
    print(f"\nfrom the request to cancel to the end of all processes of the stage: {seconds:.1f} s")
    assert seconds < SECONDS_TO_END
    assert project.has_checkpoint()
    assert project.dvc("status").returncode == 0
    assert service.ended(run).is_cancelled()

    # the service is stopped in mid-training: the checkpoint is saved, and nothing is left
    run = service.submit()
    project.wait_until(lambda: len(project.lives()) == 2, PATIENCE)
    time.sleep(2)
    service.stop()
    assert project.processes() == []
    assert project.has_checkpoint()

    # started again, the next run resumes
    saved = project.saved_step()
    steps = saved + 300
    project.set(steps=steps)
    service.start()
    run = service.submit()
    assert service.ended(run).is_completed()
    assert f"resuming after step {saved}" in service.said()
    assert project.model() == project.undisturbed_model(steps)
    assert len(project.lives()) == 3


def test_a_schedule_fires(service, project):
    service.stop()
    deploy(project, MINUTE)
    service.start()

    def fired():
        with service.client() as client:
            runs = client.read_flow_runs()
            return [r for r in runs if r.auto_scheduled and r.state is not None and r.state.is_completed()]

    project.wait_until(lambda: bool(fired()), PATIENCE)


def test_two_at_once_wait_for_the_slot(service, project):
    project.set(steps=300, hold=True)
    first, second = service.submit(), service.submit()
    project.wait_until(project.has_checkpoint, PATIENCE)
    time.sleep(30)  # the other run has come to the stage meanwhile
    assert len(project.lives()) == 1
    (project.root / "work" / "go").touch()
    assert service.ended(first).is_completed()
    assert service.ended(second).is_completed()
    assert len(project.lives()) == 1
    assert project.model() == project.undisturbed_model(300)
    assert project.dvc("status").returncode == 0


@pytest.mark.parametrize("victims", [("worker",), ("worker", "prefect.engine"), ("server",), ("flows.serve",)])
def test_whatever_is_killed_nothing_is_left_and_a_new_run_resumes(service, project, victims):
    project.set(steps=20_000)
    lost = service.submit("alone")
    project.wait_until(project.has_checkpoint, PATIENCE)
    for pid in project.running(*victims):
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    assert service.process.wait(PATIENCE) != 0
    project.wait_until(lambda: not project.processes(), PATIENCE)
    seconds = time.monotonic() - killed
    print(f"\nfrom SIGKILL of {' and '.join(victims)} to the end of all processes: {seconds:.1f} s")
    assert seconds < SECONDS_TO_STOP
    assert project.dvc("status").returncode == 0

    saved = project.saved_step()
    steps = saved + 300
    project.set(steps=steps)
    service.start()
    assert service.state(lost).is_final()
    run = service.submit("alone")
    assert service.ended(run).is_completed(), service.state(run)
    assert f"resuming after step {saved}" in service.said()
    assert len(project.lives()) == 2
    assert project.model() == project.undisturbed_model(steps)
