"""The service as a user runs it: server, worker, schedules, cancellation, death. Minutes, so not part of the suite:

python -m pytest tests/flows/scenarios.py -s
"""

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from flows.environment import ROOT

SECONDS_TO_END = 15
DEPLOYMENTS = {
    "name": "scenarios",
    "deployments": [
        {"name": "once", "entrypoint": "flows/pipeline.py:pipeline", "work_pool": {"name": "local"}},
        {
            "name": "minute",
            "entrypoint": "flows/pipeline.py:pipeline",
            "parameters": {"stages": ["prepare"]},
            "schedules": [{"cron": "* * * * *", "active": False}],
            "work_pool": {"name": "local"},
        },
    ],
}


class Service:
    """`python -m flows.serve` in a project, and the client of its API."""

    def __init__(self, project, home: Path) -> None:
        self.project = project
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.variables = {"PREFECT_HOME": str(home), "PREFECT_API_URL": self.url}
        self.start()

    def start(self) -> None:
        self.log = open(self.project.root.parent / "service.log", "w")  # noqa: SIM115 - lives as long as the process
        self.process = self.project.start(
            "-m", "flows.serve", "--port", str(self.port), stdout=self.log, variables=self.variables
        )
        self.project.wait_until(lambda: "ready: " in Path(self.log.name).read_text(), 240)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(240)

    def client(self):
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.url)

    def submit(self, name="once", **parameters):
        with self.client() as client:
            deployment = client.read_deployment_by_name(f"pipeline/{name}")
            return client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def state(self, run):
        with self.client() as client:
            return client.read_flow_run(run).state

    def ended(self, run, seconds=240):
        self.project.wait_until(lambda: self.state(run).is_final(), seconds)
        return self.state(run)

    def workers(self):
        return [p for p in psutil.Process(self.process.pid).children() if "worker" in p.cmdline()]

    def engines(self):
        return [
            p for p in psutil.process_iter() if "prefect.engine" in p.cmdline() and p.cwd() == str(self.project.root)
        ]


@pytest.fixture
def service(project, tmp_path):
    shutil.copytree(ROOT / "flows", project.root / "flows")
    YAML().dump(DEPLOYMENTS, project.root / "prefect.yaml")
    made = Service(project, tmp_path / "prefect")
    yield made
    if made.process.poll() is None:
        made.stop()


def dvc_processes(project):
    return [p for p in project.processes() if {"flows.guard", "dvc", "train.py"} & set(p.cmdline())]


def test_cancel_stop_and_cron(service, project):
    project.set(steps=20_000)
    run = service.submit()
    project.wait_until(project.has_checkpoint, 240)

    from prefect.states import Cancelling

    with service.client() as client:
        client.set_flow_run_state(run, Cancelling(), force=True)
    asked = time.monotonic()
    project.wait_until(lambda: not dvc_processes(project), 120)
    seconds = time.monotonic() - asked
    print(f"\nfrom the request to cancel to the end of all processes of the stage: {seconds:.1f} s")
    assert seconds < SECONDS_TO_END
    assert project.has_checkpoint()
    assert project.dvc("status").returncode == 0
    assert service.ended(run).is_cancelled()

    # the service is stopped in mid-training: the checkpoint is saved, and nothing is left
    run = service.submit()
    project.wait_until(lambda: len(project.lives()) == 2, 240)
    time.sleep(2)
    service.stop()
    assert project.processes() == []
    assert project.has_checkpoint()

    # started again, the next run resumes, and a schedule fires
    project.set(steps=400)
    (project.root / "work" / "checkpoint.json").unlink()
    service.start()
    with service.client() as client:
        minute = client.read_deployment_by_name("pipeline/minute")
        client.update_deployment_schedule(minute.id, minute.schedules[0].id, active=True)
    run = service.submit()
    assert service.ended(run).is_completed()
    assert project.model() == project.undisturbed_model(400)

    def fired():
        with service.client() as client:
            from prefect.client.schemas.filters import DeploymentFilter

            some = DeploymentFilter.model_validate({"id": {"any_": [minute.id]}})
            return [r for r in client.read_flow_runs(deployment_filter=some) if r.state.is_completed()]

    project.wait_until(lambda: bool(fired()), 240)
    assert fired()[0].auto_scheduled


def test_two_at_once_wait_for_the_slot_and_a_killed_worker_is_replaced(service, project):
    project.set(steps=300, hold=True)
    first, second = service.submit(), service.submit()
    project.wait_until(project.has_checkpoint, 240)
    time.sleep(30)  # the other run has come to the stage meanwhile
    assert len(project.lives()) == 1
    (project.root / "work" / "go").touch()
    assert service.ended(first).is_completed()
    assert service.ended(second).is_completed()
    assert len(project.lives()) == 1
    assert project.model() == project.undisturbed_model(300)
    assert project.dvc("status").returncode == 0

    # the worker and the run's own process are killed: the guard saves the training, a new run resumes
    project.set(steps=20_000, hold=False, rate=0.2)
    service.submit()
    project.wait_until(lambda: len(project.lives()) == 2 and project.has_checkpoint(), 240)
    for process in [*service.workers(), *service.engines()]:
        os.kill(process.pid, signal.SIGKILL)
    project.wait_until(lambda: not dvc_processes(project), 60)
    assert project.has_checkpoint()
    service.process.wait(240)  # it ends with its worker
    project.set(steps=1500)
    service.start()
    run = service.submit()
    assert service.ended(run).is_completed(), service.state(run)
    assert len(project.lives()) == 3
    assert project.model() == project.undisturbed_model(1500, rate=0.2)
