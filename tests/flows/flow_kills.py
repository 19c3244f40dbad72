"""Interruptions of runs and services, and what must hold afterwards. Used by the suite and the long scenarios."""

import os
import re
import signal
import time

from flow_service import PATIENCE
from ruamel.yaml import YAML

from flows.serve import POOL

FLOW = {"entrypoint": "flows/pipeline.py:pipeline", "work_pool": {"name": POOL}}
ONCE = {"name": "once", **FLOW}
ALONE = {"name": "alone", "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"}, **FLOW}  # as nightly
MINUTE = {"name": "minute", "parameters": {"stages": ["prepare"]}, "schedules": [{"cron": "* * * * *"}], **FLOW}
MONTHLY = {"name": "monthly", "schedules": [{"cron": "0 0 1 * *"}], **FLOW}
SERVER = ("flows.temporary", "prefect.server.api.server:create_app")  # whatever starts the temporary server
STAGE = ("flows.guard", "dvc", "train.py")  # words in the command lines of a stage's processes


def deploy(project, *deployments):
    YAML().dump({"name": "scenarios", "deployments": list(deployments)}, project.root / "prefect.yaml")


def next_life(project, begin):
    """Call `begin`, which starts a trainer, and return its result once it has got further than the one before."""
    lives, saved = len(project.lives()), project.saved_step()
    begun = begin()
    project.wait_until(lambda: len(project.lives()) > lives and project.saved_step() > saved, PATIENCE)
    return begun


def training(service, project, deployment="once", **parameters):
    """A new run, once it trains."""
    return next_life(project, lambda: service.submit(deployment, **parameters))


def cancel(service, project, run) -> float:
    """Cancel a run. Returns the seconds until no process of its stage is left; its training has saved.

    The run gets its final state later: the worker looks only every few seconds whether its process has ended.
    """
    from prefect.states import Cancelling

    with service.client() as client:
        client.set_flow_run_state(run, Cancelling(), force=True)
    asked = time.monotonic()
    project.wait_until(lambda: not project.running(*STAGE), PATIENCE)
    assert project.has_checkpoint()
    return time.monotonic() - asked


def tracebacks_of_runs(said: str) -> list[str]:
    """The tracebacks in a service's output, but for those of Prefect's server.

    The server logs one when a run that is being stopped closes its connection, or when its database is busy.
    """
    ends_at_next_record = r"Traceback \(most recent call last\).*?(?=^\d\d:\d\d:\d\d|\Z)"
    blocks = re.findall(ends_at_next_record, said, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if not re.search(r"/(uvicorn|starlette|fastapi|prefect/server)/", block)]


def kill(project, *words) -> float:
    """SIGKILL processes with one of the words as an argument. Returns the time at which it was sent."""
    victims = project.running(*words)
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def kill_service(service, project, *words) -> float:
    """Kill a part of a service. Returns the seconds until it and the run's stage have ended; the stage has saved."""
    killed = kill(project, *words)
    assert service.process.wait(PATIENCE) != 0
    project.wait_until(lambda: not project.processes(), PATIENCE)
    assert project.has_checkpoint()
    return time.monotonic() - killed


def resume(service, project, deployment, steps):
    """A new run resumes from the checkpoint. After `steps` steps its model is that of an undisturbed training."""
    saved = project.saved_step()
    project.set(steps=saved + steps)
    run = service.submit(deployment)
    assert service.ended(run).is_completed(), service.state(run)
    assert f"resuming after step {saved}" in service.said()
    assert project.model() == project.undisturbed_model(saved + steps)


def end_of_terminal_run(process, project, status) -> float:
    """Seconds until a `python -m flows.…` that was told to stop has ended; nothing is left, and training has saved."""
    asked = time.monotonic()
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == status, output
    said = re.compile(r"(\S+: )?stage train: stopped by SIGTERM: checkpoint saved at step \d+ in ")
    assert any(map(said.match, output.splitlines())), output
    assert not [word for word in ("Traceback", "Crash", "ERROR: ") if word in output], output
    assert project.processes() == []
    return time.monotonic() - asked
