"""The service as a user runs it: server, worker, schedules, cancellation, death. Minutes, so not part of the suite:

python -m pytest tests/flows/scenarios.py -s
"""

import json
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


def interrupt(process):
    """Ctrl-C in a terminal: everything in the process's group gets the signal."""
    os.killpg(process.pid, signal.SIGINT)
    asked = time.monotonic()
    output = process.communicate(timeout=PATIENCE)[0]
    print(f"\nfrom Ctrl-C to the end: {time.monotonic() - asked:.1f} s")
    assert process.returncode == 130, output
    assert "error: interrupted; the next run goes on from what is saved" in output.splitlines()
    assert "Traceback" not in output
    assert time.monotonic() - asked < SECONDS_TO_STOP


def test_ctrl_c_without_a_server(project):
    project.set(steps=20_000)
    home = {"PREFECT_HOME": str(project.root.parent / "prefect")}
    running = project.start("-m", "flows.pipeline", variables=home, process_group=0)
    project.wait_until(project.has_checkpoint, PATIENCE)
    interrupt(running)
    assert project.processes() == []
    assert project.has_checkpoint()
    assert project.dvc("status").returncode == 0


def test_without_a_server(project):
    def pipeline(*args):
        process = project.start(
            "-m", "flows.pipeline", *args, variables={"PREFECT_HOME": str(project.root.parent / "p")}
        )
        output = process.communicate(timeout=PATIENCE)[0]
        return process.returncode, output

    project.set(steps=30)
    status, output = pipeline("--stage", "train")
    assert status == 0, output
    assert project.model() == project.undisturbed_model(30)
    assert not (project.root / "metrics.json").exists()

    # a parameter set, and an override on top of it; what is not asked for is left alone
    (project.root / "set.yaml").write_text("train: {rate: 0.5, steps: 20}\nprepare: {text: other}\n")
    status, output = pipeline("--stage", "train", "--only", "--params", "set.yaml", "--set", "train.rate=0.2")
    assert status == 0, output
    assert project.model() == project.undisturbed_model(20, rate=0.2)
    assert (project.root / "text.txt").read_text() == "some text\n"

    lives = len(project.lives())
    status, output = pipeline("--stage", "train", "--only")
    assert (status, len(project.lives())) == (0, lives), output
    status, output = pipeline("--stage", "train", "--only", "--force")
    assert (status, len(project.lives())) == (0, lives + 1), output

    whole = (project.root / "params.yaml").read_text()
    status, output = pipeline("--set", "train.speed=3")
    assert status == 1
    assert output.splitlines()[-2].startswith("error: ")
    assert "train.speed: unknown key" in output
    assert (project.root / "params.yaml").read_text() == whole
    status, output = pipeline("--stage", "nothing")
    assert status == 1
    assert "error: dvc.yaml: " in output


def test_a_sweep_leaves_the_workspace_alone(project):
    project.set(steps=30)
    before = project.dvc("status").stdout, project.git("status", "--porcelain"), project.git("diff")
    axis = "train.rate=0.1,0.2,-1"
    home = {"PREFECT_HOME": str(project.root.parent / "prefect")}
    done = project.start("-m", "flows.sweep", "--axis", axis, "--name", "rates", variables=home)
    project.wait_until((project.root / ".dvc/tmp/sweep/rates-0_1/work/lives").exists, PATIENCE)
    (project.root / "later.txt").write_text("made while the first variant trains, so in none of them")
    output = done.communicate(timeout=PATIENCE)[0]
    (project.root / "later.txt").unlink()
    assert done.returncode == 1, output
    assert "rates-1: stage train: exit status 2: error: params.yaml: train.rate: given -1" in output
    assert (project.dvc("status").stdout, project.git("status", "--porcelain"), project.git("diff")) == before

    result = json.loads((project.root / "reports/sweep.json").read_text())
    rows = {row["name"]: row for row in result["variants"]}
    assert list(rows) == ["rates-0_1", "rates-0_2", "rates-1"]
    assert result["metric"] == "metrics.json:loss"
    # the stage before training was not run again
    assert [rows[name]["stages"]["prepare"] for name in ("rates-0_1", "rates-0_2")] == ["cached", "cached"]
    for name, rate in (("rates-0_1", 0.1), ("rates-0_2", 0.2)):
        model = project.undisturbed_model(30, rate=rate).strip()
        assert rows[name]["metrics"]["metrics.json:model"] == model
        assert rows[name]["metrics"]["metrics.json:loss"] == int(model[:4], 16) / 65536
    assert "rates-0_2" in (project.root / "reports/sweep.svg").read_text()

    experiments = project.git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    second = next(name for name in experiments if name.endswith("rates-0_2"))
    assert "train.py" in project.git("ls-tree", "--name-only", second)
    assert "later.txt" not in project.git("ls-tree", "--name-only", second)

    # they are experiments of this project
    shown = project.dvc("exp", "show", "--csv", "--no-pager").stdout
    assert "rates-0_1" in shown
    assert "rates-1" not in shown
    difference = json.loads(project.dvc("params", "diff", "rates-0_1", "rates-0_2", "--json").stdout)
    assert difference == {"params.yaml": {"train.rate": {"old": 0.1, "new": 0.2, "diff": 0.1}}}
    applied = project.dvc("exp", "apply", "rates-0_2")
    assert applied.returncode == 0, applied.stderr
    assert project.model() == project.undisturbed_model(30, rate=0.2)
    assert project.dvc("status").stdout.strip() == "Data and pipelines are up to date."


def test_an_interrupted_sweep_goes_on_from_its_checkpoints(project):
    steps = {f"steps-{n}": n for n in (30, 1500, 1501)}
    axis = "train.steps=" + ",".join(map(str, steps.values()))
    home = {"PREFECT_HOME": str(project.root.parent / "prefect")}

    def sweep():
        command = ("-m", "flows.sweep", "--axis", axis, "--jobs", "2", "--name", "steps")
        return project.start(*command, variables=home, process_group=0)

    def saved():
        files = project.root.glob(".dvc/tmp/sweep/steps-1*/work/checkpoint.json")
        return max((json.loads(file.read_text())["step"] for file in files), default=0)

    running = sweep()
    project.wait_until(
        lambda: saved() > 100, PATIENCE
    )  # one of the two that are going on; the other waits for its slot
    interrupt(running)
    assert project.processes() == []
    last = saved()
    assert not (project.root / "reports/sweep.json").exists()

    again = sweep()
    output = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0, output
    assert f"resuming after step {last}" in output
    result = json.loads((project.root / "reports/sweep.json").read_text())
    models = {row["name"]: row["metrics"]["metrics.json:model"] for row in result["variants"]}
    assert models == {name: project.undisturbed_model(n).strip() for name, n in steps.items()}
    assert list(project.root.glob(".dvc/tmp/sweep/*")) == []
