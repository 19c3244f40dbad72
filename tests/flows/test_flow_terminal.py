"""Flows and the service in a terminal, stopped and killed in every way: nothing is left."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from flow_kills import SERVER
from flow_project import Workspace
from flow_service import PATIENCE

from flows.environment import child_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # on a busy machine the server takes minutes


def test_sigkill_to_a_run_and_its_child(project):
    """As `kill -9` of all that a list of processes shows as flows.pipeline; the server is only starting."""
    home = {"PREFECT_HOME": str(project.root.parent / "prefect")}
    running = project.start("-m", "flows.pipeline", variables=home)
    # A process between its fork and its exec looks like another one of them.
    project.wait_until(lambda: project.running(*SERVER) and len(project.running("flows.pipeline")) == 2, PATIENCE)
    for signum in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: neither may end because the other one has
        for pid in project.running("flows.pipeline"):
            os.kill(pid, signum)
    project.wait_until(lambda: not project.processes(), PATIENCE)
    assert running.wait() == -signal.SIGKILL


def test_after_sigkill_of_the_service_nothing_is_left(project):
    """Killed while it starts, which costs no second start; scenarios.py kills it with a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {"PREFECT_HOME": str(project.root.parent / "prefect")}
    service = project.start("-m", "flows.serve", "--port", str(port), variables=home)
    project.wait_until(lambda: bool(project.running("server")), PATIENCE)
    service.kill()
    project.wait_until(lambda: not project.processes(), PATIENCE)


RUN = """
    import pathlib, subprocess, sys, time
    from flows.processes import exit_status

    def run():
        helper = subprocess.Popen(["sleep", "600"])  # as the temporary server: ended on the usual way out
        try:
            pathlib.Path("ready").touch()
            time.sleep(600)
        finally:
            helper.terminate()
            helper.wait()
            pathlib.Path("cleaned").touch()

    sys.exit(exit_status(run))
"""


@pytest.mark.parametrize(
    ("signum", "victim", "status", "cleaned"),
    [
        (signal.SIGINT, "parent", 130, True),
        (signal.SIGTERM, "parent", 143, True),
        (signal.SIGHUP, "parent", 143, True),
        (signal.SIGTERM, "child", 143, True),
        (signal.SIGKILL, "parent", -9, True),
        (signal.SIGKILL, "child", 137, False),
    ],
)
def test_what_a_run_has_started_ends_with_it(tmp_path, signum, victim, status, cleaned):
    folder = Workspace(tmp_path)
    code = textwrap.dedent(RUN)
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=child_environment(), stderr=subprocess.PIPE
    )
    folder.wait_until((tmp_path / "ready").exists)
    named = {"parent": psutil.Process(parent.pid), "child": psutil.Process(parent.pid).children()[0]}
    named[victim].send_signal(signum)
    assert parent.wait(PATIENCE) == status
    if (signum, victim) != (signal.SIGKILL, "parent"):
        assert folder.processes() == []  # when it returns, all is gone
    folder.wait_until(lambda: not folder.processes(), PATIENCE)
    assert (tmp_path / "cleaned").exists() == cleaned
    assert b"Traceback" not in parent.stderr.read()


def test_the_temporary_server_is_gone_with_its_owner(tmp_path):
    """The server ends by the end of its pipe alone, whether it is importing or not."""
    server = subprocess.Popen(
        [sys.executable, "-m", "flows.temporary", "0"], stdin=subprocess.PIPE, cwd=tmp_path, env=child_environment()
    )
    time.sleep(1)
    assert server.poll() is None
    server.stdin.close()
    assert server.wait(PATIENCE) == -signal.SIGKILL
