"""launch/machine.py leaves with the status of the training, also where only another machine was told to stop."""

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from accelerate.commands import launch as _imported  # noqa: F401  # once, for all forks

from launch.machine import RESUMABLE, main, status_of
from qwen3llada.training import stopping

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("fork")
DEADLINE = 60  # seconds
# All processes of a run leave together when one of them got the signal, as the trainer's do.
PROCESS = """
import os, signal, sys, time
from pathlib import Path

folder, statuses = Path(sys.argv[1]), sys.argv[2:]
stop = folder / "stop"
signal.signal(signal.SIGTERM, lambda *_: stop.touch())
(folder / f"started {os.environ['RANK']}").touch()
while statuses == ["75"] and not stop.exists():
    time.sleep(0.01)
sys.exit(int(statuses[int(os.environ["RANK"]) % len(statuses)]))
"""


@pytest.mark.parametrize(
    ("exitcodes", "status"),
    [
        ([75, 75], 75),
        ([75, 143], 75),  # stopped by the launcher, because the other one had left
        ([-15, 75], 75),
        ([143, 1], 1),
        ([1, 75], 1),
        ([75, 2], 2),
        ([-9, 143], 137),
        ([-15, -15], 143),
    ],
)
def test_the_status_of_several_processes(exitcodes, status):
    assert status_of(exitcodes) == status
    assert RESUMABLE == stopping.RESUMABLE == 75


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder: Path, machines: int, statuses: list[str], port: int, present: int | None = None) -> list:
    """Start `present` of so many machines, by default all, with two processes each."""
    (folder / "process.py").write_text(PROCESS)
    flags = [f"--config_file={ROOT}/launch/fsdp2.yaml", f"--num_machines={machines}", f"--num_processes={2 * machines}"]
    flags += ["--main_process_ip=127.0.0.1", f"--main_process_port={port}"]
    script = [str(folder / "process.py"), str(folder), *statuses]
    started = [
        CONTEXT.Process(target=main, args=([*flags, f"--machine_rank={n}", *script],))
        for n in range(present or machines)
    ]
    for process in started:
        process.start()
    return started


def ended(machines: list) -> list[int | None]:
    for process in machines:
        process.join(DEADLINE)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in machines]


@pytest.mark.slow
@pytest.mark.parametrize(("statuses", "status"), [(["0"], 0), (["0", "2"], 2)])
def test_a_training_that_ends_by_itself(tmp_path, statuses, status):
    assert ended(start(tmp_path, 1, statuses, free_port())) == [status]


@pytest.mark.slow
def test_a_signal_to_one_machine_stops_all_with_status_75(tmp_path):
    machines = start(tmp_path, 2, ["75"], free_port())
    end = time.monotonic() + DEADLINE
    while len(list(tmp_path.glob("started *"))) < 4:
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(machines[1].pid, signal.SIGTERM)
    assert ended(machines) == [75, 75]
