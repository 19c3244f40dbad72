"""torchrun starts the processes of a run again when one was killed, and lets them save when it is told to stop."""

import inspect
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from runs import assert_same_run, elsewhere, saved_steps, start_process, train_together
from tiny_settings import common
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from qwen3llada.artifacts import read_json, write_json
from qwen3llada.params import run_as_stage
from qwen3llada.training import loop
from qwen3llada.training.checkpoints.folder import step_of
from qwen3llada.training.params import PretrainParams
from stages import pretrain

ROOT = Path(__file__).parents[2]
STEPS, LAST = 8, 4  # of the run; before the signal
DEADLINE = 120  # seconds that torchrun may take


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run of two processes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    knobs = {"max_steps": STEPS, "save_steps": 1, "gradient_accumulation_steps": 1}
    params = PretrainParams.model_validate(common(tiny, folder, "pretrain") | knobs)
    loop.train(elsewhere(params, folder / "warm", max_steps=1), seed=1)  # imports what every fork needs
    train_together(params, 2)
    return params


def torchrun(params, signals: dict[tuple[str, str], signal.Signals]) -> None:
    """`torchrun --nproc-per-node 2 --max-restarts 2 -m stages.pretrain`, whose workers are forks, which saves imports.

    `signals`: rank and number of restarts -> what that process gets after `LAST` steps.
    """
    from accelerate.state import AcceleratorState

    os.setsid()
    AcceleratorState._reset_state(reset_partial_state=True)  # of the parent
    folder = params.output_dir.parent
    shutil.copy(ROOT / "params.yaml", folder)
    write_json(folder / "set.yaml", {"seed": 1, "pretrain": params.model_dump(mode="json")})  # JSON is YAML
    os.chdir(folder)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # docs/scaling.md says why
    options = [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        "--rdzv-id",
        "run",
    ]  # as torchrun sets by itself
    options += ["--nproc-per-node", "2", "--max-restarts", "2", "--monitor-interval", "0.1", "-m", "stages.pretrain"]
    config, _, _ = config_from_args(parse_args(options))
    config.start_method = "fork"
    # torch asks for the stack with each event it records, and pytest's is deep: without the source lines it is quick.
    inspect.stack = partial(inspect.stack, 0)
    try:
        elastic_launch(config, stage)(signals)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)


def stage(signals: dict[tuple[str, str], signal.Signals]) -> None:
    """A worker: `python -m stages.pretrain --params set.yaml`."""
    life = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    Path(" ".join(["life", *life])).touch()
    take_step = loop.optimiser_step

    def optimiser_step(run, step, stop):
        if run.state.global_step == LAST and life in signals:
            number = signals[life]
            os.kill(os.getppid() if number == signal.SIGTERM else os.getpid(), number)
            while number == signal.SIGTERM and stop.signal is None:
                time.sleep(0.005)  # torchrun passes it on
        return take_step(run, step, stop)

    loop.optimiser_step = optimiser_step
    sys.argv = ["pretrain", "--params", "set.yaml"]
    run_as_stage(pretrain.main, own="pretrain", shared=("seed",))


def launched(whole, folder: Path, signals: dict[tuple[str, str], signal.Signals]):
    """The parameters, torchrun's status and the lives (rank, restarts) of a run that got `signals`."""
    params = elsewhere(whole, folder)
    params.output_dir.mkdir(parents=True)
    agent = start_process(torchrun, params, signals)
    agent.join(DEADLINE)
    if agent.is_alive():
        os.killpg(agent.pid, signal.SIGKILL)
    return params, agent.exitcode, sorted(tuple(path.name.split()[1:]) for path in folder.glob("life *"))


@pytest.mark.slow
def test_killed_processes_cost_a_step_and_no_bit(whole, tmp_path):
    """First the process with the folder's lock is killed, then the other one, so that torchrun ends the first."""
    killed = {("0", "0"): signal.SIGKILL, ("1", "1"): signal.SIGKILL}
    params, status, lives = launched(whole, tmp_path, killed)
    assert (status, lives) == (0, [(rank, restart) for rank in "01" for restart in "012"])
    assert 0 < step_of(Path(read_json(params.reports / "speed.json")["resumed_from"])) <= LAST
    assert_same_run(whole, params, STEPS)


@pytest.mark.slow
def test_torchrun_that_is_told_to_stop_lets_the_processes_save(whole, tmp_path):
    params, status, lives = launched(whole, tmp_path, {("1", "0"): signal.SIGTERM})
    assert (status, lives) == (128 + signal.SIGTERM, [("0", "0"), ("1", "0")])
    assert LAST < max(saved_steps(params.output_dir)) < STEPS
    assert not params.dst.exists()
    train_together(params, 2)
    assert_same_run(whole, params, STEPS)
