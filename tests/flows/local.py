"""Flows without a server, and sweeps: a small project, real processes. Minutes, so not part of the suite:

python -m pytest tests/flows/local.py -s
"""

import json
import os
import signal

import pytest
from flow_kills import end_of_terminal_run
from flow_service import PATIENCE

pytestmark = pytest.mark.timeout(7200)
SECONDS_TO_STOP = 60  # with the temporary server, on two busy cores


def interrupt(process, project):
    """Ctrl-C in a terminal: every process in the group gets the signal."""
    os.killpg(process.pid, signal.SIGINT)
    seconds = end_of_terminal_run(process, project, 130)
    print(f"\nfrom Ctrl-C to the end: {seconds:.1f} s")
    assert seconds < SECONDS_TO_STOP


def test_ctrl_c_without_a_server(project):
    project.set(steps=20_000)
    home = {"PREFECT_HOME": str(project.root.parent / "prefect")}
    running = project.start("-m", "flows.pipeline", variables=home, process_group=0)
    project.wait_until(project.has_checkpoint, PATIENCE)
    interrupt(running, project)
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
    assert any("rates-1: " in line and "train.rate: must not be negative" in line for line in output.splitlines())
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

    # the variants are experiments of this project
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
    interrupt(running, project)
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


def test_a_sweep_up_to_a_stage_is_saved_without_the_later_ones(project):
    home = {"PREFECT_HOME": str(project.root.parent / "prefect")}
    command = ("-m", "flows.sweep", "--axis", "prepare.text=a,b", "--stage", "prepare", "--name", "texts")
    done = project.start(*command, variables=home)
    output = done.communicate(timeout=PATIENCE)[0]
    assert done.returncode == 0, output
    difference = json.loads(project.dvc("params", "diff", "texts-a", "texts-b", "--json").stdout)
    assert difference == {"params.yaml": {"prepare.text": {"old": "a", "new": "b"}}}
    assert project.lives() == []
