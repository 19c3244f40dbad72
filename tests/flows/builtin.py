"""The built-in pipeline as a flow: from nothing to the report, and through kills to the same model. Minutes, so apart:

python -m pytest tests/flows/builtin.py -s
"""

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from flows.environment import ROOT

pytestmark = pytest.mark.timeout(7200)
PATIENCE = 3000
SHORT = ("--params", "configs/ci.yaml", "--set", "pretrain.save_steps=5", "--set", "pretrain.eval_every_steps=10")


@pytest.fixture
def workspace(tmp_path, checkout):
    """A clone of this repository, with nothing run in it, and Prefect's data beside it."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    made = checkout(tmp_path / "clone")
    yield made
    for process in made.processes():
        process.kill()


@pytest.fixture
def checkout(project):
    return type(project)


def start(workspace, *args):
    home = {"PREFECT_HOME": str(workspace.root.parent / "prefect"), "PYTHONPATH": str(workspace.root)}
    return workspace.start("-m", "flows.pipeline", *args, variables=home)


def finish(process):
    output = process.communicate(timeout=PATIENCE)[0]
    return process.returncode, output


def digest(workspace):
    return hashlib.sha256((workspace.root / "out/qwen3llada-base/model.safetensors").read_bytes()).hexdigest()


def checkpoints(workspace):
    return {path.name for path in (workspace.root / "out/pretrain/checkpoints").glob("step-*")}


def training(workspace):
    return [pid for pid in workspace.running("stages.pretrain") if "dvc" not in psutil.Process(pid).cmdline()]


def in_training(workspace, after):
    """Training runs and has saved a checkpoint that was not there before."""
    return lambda: bool(training(workspace)) and bool(checkpoints(workspace) - after)


@pytest.fixture
def undisturbed(tmp_path_factory, checkout):
    root = tmp_path_factory.mktemp("undisturbed") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True)
    made = checkout(root)
    status, output = finish(start(made, *SHORT))
    assert status == 0, output[-3000:]
    return made


def test_from_nothing_to_the_report_and_through_kills_to_the_same_model(undisturbed, workspace):
    page = (undisturbed.root / "reports/report.html").read_text()
    assert "held-out answers exact" in page
    assert undisturbed.dvc("status").stdout.strip() == "Data and pipelines are up to date."

    flow = start(workspace, "--stage", "pretrain", *SHORT)
    workspace.wait_until(in_training(workspace, set()), PATIENCE)
    os.kill(training(workspace)[0], signal.SIGKILL)
    workspace.wait_until(lambda: not training(workspace), PATIENCE)
    seen = checkpoints(workspace)
    workspace.wait_until(in_training(workspace, seen), PATIENCE)  # tried again, and further than before
    dvc = next(p for p in psutil.Process(training(workspace)[0]).parents() if "repro" in p.cmdline())
    dvc.kill()
    workspace.wait_until(lambda: not training(workspace), PATIENCE)
    seen = checkpoints(workspace)
    workspace.wait_until(in_training(workspace, seen), PATIENCE)
    flow.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    output = flow.communicate(timeout=PATIENCE)[0]
    workspace.wait_until(lambda: not workspace.processes(), PATIENCE)
    print(f"\nfrom SIGTERM to the end of all processes: {time.monotonic() - asked:.1f} s")
    assert "killed by signal 9" in output
    assert workspace.dvc("status").returncode == 0
    assert checkpoints(workspace)

    status, output = finish(start(workspace, "--stage", "pretrain"))
    assert status == 0, output[-3000:]
    assert digest(workspace) == digest(undisturbed)


def test_bad_parameters_and_bad_data_fail_before_anything_is_trained(workspace):
    status, output = finish(start(workspace, "--set", "pretrain.optim.lr=-1"))
    assert status == 1
    assert "pretrain.optim.lr: given -1" in output
    assert workspace.git("status", "--porcelain") == ""
    assert not (workspace.root / "data").exists()

    records = Path(workspace.root.parent / "bad.jsonl")
    good = {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Yes."}]}
    bad = {"conversations": [{"from": "human", "value": "Hello?"}]}
    records.write_text("".join(json.dumps(record) + "\n" for record in [good] * 20 + [bad] + [good] * 20))
    override = ("--set", f"sft_data.name={records}", "--set", "sft_data.heldout_fraction=0.1")
    status, output = finish(start(workspace, *SHORT, *override))
    assert status == 1
    assert "error: stage validate: exit status 1" in output
    assert not (workspace.root / "data/tokenized").exists()
    assert not (workspace.root / "out/qwen3llada-base").exists()
    assert output.count("Running stage 'validate'") == 1  # no retry
