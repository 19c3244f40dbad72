"""The service as a user runs it: server, worker, schedules, cancellation, death. Minutes, so not part of the suite,
which has short forms of some (test_flow_kills.py):

python -m pytest tests/flows/scenarios.py -s
"""

import re
import shutil
import subprocess
import sys
import time

import pytest
from flow_kills import ALONE, MINUTE, ONCE, cancel, deploy, kill_service, resume, training
from flow_service import PATIENCE, Service

from flows.environment import ROOT, child_environment

pytestmark = pytest.mark.timeout(7200)
SECONDS_TO_END = 15
SECONDS_TO_STOP = 60  # with the server and the worker, on two busy cores


@pytest.fixture
def service(project, tmp_path):
    shutil.copytree(ROOT / "flows", project.root / "flows")
    deploy(project, ONCE, ALONE)
    made = Service(project, tmp_path / "prefect")
    yield made
    if made.process.poll() is None:
        made.stop()


def test_cancel_and_stop(service, project):
    project.set(steps=20_000)
    run = training(service, project)
    assert str(run) in listed(service)
    seconds = cancel(service, project, run)
    print(f"\nfrom the request to cancel to the end of all processes of the stage: {seconds:.1f} s")
    assert seconds < SECONDS_TO_END
    assert service.ended(run).is_cancelled()
    assert project.dvc("status").returncode == 0

    # the service is stopped in mid-training: the checkpoint is saved, and nothing is left
    training(service, project)
    service.stop()
    assert project.processes() == []
    assert project.has_checkpoint()

    # started again, the next run resumes
    service.start()
    resume(service, project, "once", 300)
    assert len(project.lives()) == 3


def listed(service) -> str:
    """What the README's command for it lists: runs, with IDs to be copied."""
    columns, command = re.search(r"^COLUMNS=(\d+) prefect (.*?) +#", (ROOT / "README.md").read_text(), re.M).groups()
    return subprocess.run(
        [sys.executable, "-m", "prefect", *command.split()],
        env=child_environment() | service.variables | {"COLUMNS": columns},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


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
    time.sleep(30)  # meanwhile the other run reaches the stage
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
    lost = training(service, project, "alone")
    seconds = kill_service(service, project, *victims)
    print(f"\nfrom SIGKILL of {' and '.join(victims)} to the end of all processes: {seconds:.1f} s")
    assert seconds < SECONDS_TO_STOP
    assert project.dvc("status").returncode == 0

    service.start()
    assert service.state(lost).is_final()
    resume(service, project, "alone", 300)
    assert len(project.lives()) == 2
