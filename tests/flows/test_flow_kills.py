"""The service as a user runs it, through cancellation and kills: one server for all, in the order of this file.

These are short forms of the scenarios in scenarios.py and builtin.py. Those also kill the run, the server and the
service, start the service again after each, and measure the times.
"""

import shutil

import psutil
import pytest
from flow_kills import (
    MONTHLY,
    ONCE,
    SERVER,
    cancel,
    deploy,
    end_of_terminal_run,
    kill_service,
    next_life,
    tracebacks_of_runs,
    training,
)
from flow_project import Project
from flow_service import PATIENCE, Service

from flows.environment import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # on a busy machine the server takes minutes
ENDLESS = {"steps": 1_000_000, "step_seconds": 0.02}
# The worker asks for new runs every five seconds instead of every ten. Nobody looks at the user interface, nothing here
# needs these services of the server, and the flows use none of Prefect's blocks, which take seconds to register.
SETTINGS = {"PREFECT_WORKER_QUERY_SECONDS": "5", "PREFECT_SERVER_UI_ENABLED": "false"}
SETTINGS |= {"PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false"} | {
    f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false"
    for name in ("TRIGGERS", "EVENT_PERSISTER", "FOREMAN", "LATE_RUNS", "PAUSE_EXPIRATIONS")
}


@pytest.fixture(scope="module")
def served(pristine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(pristine, folder / "project")
    project = Project(folder / "project")
    shutil.copytree(ROOT / "flows", project.root / "flows")
    deploy(project, ONCE, MONTHLY)
    made = Service(project, folder / "prefect", **SETTINGS)
    yield made
    if made.process.poll() is None:
        made.stop()
    for process in project.processes():
        process.kill()


def test_a_schedule_has_runs_ahead_of_it(served):
    with served.client() as client:
        deployment = client.read_deployment_by_name("pipeline/monthly")
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment.id}, json={})
        runs = client.read_flow_runs()
    assert sum(run.auto_scheduled for run in runs) >= 3


def test_a_cancelled_run_saves_and_says_so_and_the_next_one_resumes_through_kills(served):
    """The next one is tried again after SIGKILL of its trainer, then of its dvc."""
    project = served.project
    project.set(**ENDLESS)
    cancelled = training(served, project, stages=["train"], upstream=False)
    cancel(served, project, cancelled)
    saved = project.saved_step()
    message = f"stage train: stopped by SIGTERM: checkpoint saved at step {saved} in "

    resumed = training(served, project)
    said = served.said()
    assert not [line for line in said.splitlines() if "Crash" in line or "ERROR: " in line]
    assert not tracebacks_of_runs(said)
    assert served.ended(cancelled).is_cancelled()
    state = served.ended_task(cancelled, "train").state
    assert state.is_cancelled()
    assert state.message.startswith(message)
    project.wait_until(lambda: f"Finished in state Cancelled('{state.message}')" in served.said(), PATIENCE)

    next_life(project, psutil.Process(project.lives()[1]).kill)
    steps = project.saved_step() + 2000  # the attempt after the next kill reads this, and ends
    project.set(steps=steps, step_seconds=0.001)
    trainer = psutil.Process(project.lives()[2])
    next(parent for parent in trainer.parents() if "repro" in parent.cmdline()).kill()
    assert served.ended(resumed).is_completed(), served.state(resumed)
    assert served.state(resumed).message == "prepare unchanged, train ran, measure ran"
    assert served.ended_task(resumed, "train").run_count == 3
    assert len(project.lives()) == 4
    assert f"resuming after step {saved}" in served.said()
    assert project.model() == project.undisturbed_model(steps)
    artifacts = served.artifacts(resumed)
    assert '"metric": "metrics.json:loss"' in artifacts["metrics"]
    assert artifacts["progress-train"] == 100
    with served.client() as client:
        assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 0


def test_tracebacks_of_the_server_are_told_from_those_of_a_run():
    of_server = 'Traceback (most recent call last):\n  File "/lib/uvicorn/protocols/http.py", line 1, in run\nGone\n'
    of_run = 'Traceback (most recent call last):\n  File "/project/train.py", line 1, in main\nKeyError: 1\n'
    said = f"06:00:00.1 | ERROR | {of_server}06:00:01.1 | INFO | Task run\n{of_run}06:00:02.1 | INFO | {of_server}"
    assert tracebacks_of_runs(said) == [of_run]


def test_after_sigkill_of_the_worker_the_stage_saves_and_nothing_is_left(served):
    """The last one with the service, which ends with it."""
    project = served.project
    shutil.rmtree(project.root / "work")
    project.set(**ENDLESS)
    training(served, project, stages=["train"], upstream=False)
    kill_service(served, project, "worker")


def test_sigterm_to_a_run_without_a_server(served):
    """In the database that the service has left: to make one takes Prefect a quarter of this test."""
    project = served.project
    shutil.rmtree(project.root / "work")
    settings = SETTINGS | {"PREFECT_HOME": served.variables["PREFECT_HOME"]}
    running = project.start("-m", "flows.pipeline", "--stage", "train", "--only", variables=settings, process_group=0)
    project.wait_until(project.has_checkpoint, PATIENCE)
    assert project.running(*SERVER)
    running.terminate()
    end_of_terminal_run(running, project, 143)
    assert project.dvc("status").returncode == 0
