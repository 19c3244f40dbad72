"""The service as a user runs it, through cancellation and kills: one server for all, in the order of this file.

Each is the short form of one in scenarios.py or builtin.py, without the times.
"""

import re
import shutil
import subprocess
import sys

import psutil
import pytest
from flow_kills import ALONE, MONTHLY, ONCE, STAGE, cancel, deploy, kill, kill_service, training
from flow_project import Project
from flow_service import PATIENCE, Service

from flows.environment import ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # where the machine is busy, the server takes minutes


@pytest.fixture(scope="module")
def served(pristine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(pristine, folder / "project")
    project = Project(folder / "project")
    shutil.copytree(ROOT / "flows", project.root / "flows")
    deploy(project, ONCE, ALONE, MONTHLY)
    made = Service(project, folder / "prefect")
    yield made
    if made.process.poll() is None:
        made.stop()
    for process in project.processes():
        process.kill()


@pytest.fixture
def project(served):
    """The service's project, with an endless training that has not begun."""
    shutil.rmtree(served.project.root / "work", ignore_errors=True)
    served.project.set(steps=1_000_000, hold=False)
    return served.project


def test_a_schedule_has_runs_ahead_of_it(served):
    with served.client() as client:
        deployment = client.read_deployment_by_name("pipeline/monthly")
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment.id}, json={})
        runs = client.read_flow_runs()
    assert sum(run.auto_scheduled for run in runs) >= 3


def test_a_cancelled_run_saves_and_says_so(served, project):
    run = training(served, project)
    assert str(run) in listed(served)
    cancel(served, project, run)
    state = served.task_runs(run)["train"].state
    assert state.is_cancelled()
    saved = f"checkpoint saved at step {project.saved_step()} in "
    assert state.message.startswith(f"stage train: stopped by SIGTERM: {saved}")
    said = served.said()
    assert f"Finished in state Cancelled('{state.message}')" in said
    assert not [word for word in ("Crash", "ERROR: ", "Traceback") if word in said]


def listed(served) -> str:
    """What the README's command for it lists: runs, with IDs to be copied."""
    columns, command = re.search(r"^COLUMNS=(\d+) prefect (.*?) +#", (ROOT / "README.md").read_text(), re.M).groups()
    return subprocess.run(
        [sys.executable, "-m", "prefect", *command.split()],
        env=environment() | served.variables | {"COLUMNS": columns},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_of_a_killed_run_the_stage_saves_and_ends(served, project):
    run = training(served, project)
    kill(project, "prefect.engine")
    project.wait_until(lambda: not project.running(*STAGE), PATIENCE)
    assert project.has_checkpoint()
    assert served.ended(run).is_crashed()


def test_after_sigkill_of_trainer_and_dvc_the_stage_is_run_again_and_resumes(served, project):
    project.set(steps=200, hold=True)
    run = training(served, project)
    psutil.Process(project.lives()[0]).kill()
    project.wait_until(lambda: len(project.lives()) == 2 and project.saved_step() > 5, PATIENCE)
    trainer = psutil.Process(project.lives()[1])
    next(parent for parent in trainer.parents() if "repro" in parent.cmdline()).kill()
    assert served.ended(run).is_completed(), served.state(run)
    assert served.state(run).message == "prepare unchanged, train ran, measure ran"
    assert served.task_runs(run)["train"].run_count == len(project.lives()) == 3
    assert project.model() == project.undisturbed_model(200)
    artifacts = served.artifacts(run)
    assert '"metric": "metrics.json:loss"' in artifacts["metrics"]
    assert artifacts["progress-train"] == 100
    with served.client() as client:
        assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 0


def test_after_sigkill_of_worker_or_server_nothing_is_left_and_a_new_run_resumes(served, project):
    lost = training(served, project, "alone")
    kill_service(served, project, "worker")
    saved = project.saved_step()
    served.start()
    assert served.state(lost).is_final()
    training(served, project, "alone")
    project.wait_until(lambda: f"resuming after step {saved}" in served.said(), PATIENCE)  # output comes in batches
    kill_service(served, project, "server")
    assert project.dvc("status").returncode == 0
