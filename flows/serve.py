"""Server, worker and deployments on this machine, in one command: `python -m flows.serve` (`make serve`).

The server keeps its data in Prefect's embedded SQLite database (`PREFECT_HOME`). Stopped by Ctrl-C or SIGTERM, it
cancels what is running, so that training saves its checkpoint, and ends when nothing is left.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import NoReturn

HOST = "127.0.0.1"
PORT = 4200  # Prefect's own default
POOL = "qwen3llada"
LIMIT = "gpu"
START_SECONDS = 600  # a busy machine with two cores took three minutes
STOP_SECONDS = 150  # a stage gets its grace_seconds to save, 120 by default
# A lease of a slot outlives a restart of the server, and is taken back if its holder was killed.
LEASES = "prefect.server.concurrency.lease_storage.filesystem"


class Service:
    """The processes of `make serve`, each in a group of its own: Ctrl-C reaches only this one, which stops the rest."""

    def __init__(self, port: int, slots: int) -> None:
        self.url, self.port, self.slots = f"http://{HOST}:{port}/api", port, slots
        self.started: list[subprocess.Popen] = []

    def run(self) -> int:
        """Until a signal, or until server or worker ends by itself (status 1)."""
        if _answers(self.url):
            print(f"error: a Prefect server is already running at {self.url}", file=sys.stderr)
            return 1
        for signum in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, _interrupt)
        try:
            self._start("server", "start", "--host", HOST, "--port", str(self.port))
            self._wait_for_server()
            self._register()
            self._start("worker", "start", "--pool", POOL, "--type", "process")
            print(f"ready: {self.url.removesuffix('/api')} (Ctrl-C stops)", flush=True)
            while all(process.poll() is None for process in self.started):
                time.sleep(0.5)
            return 1
        except KeyboardInterrupt:
            return 0
        finally:
            self._stop()

    def _start(self, *command: str) -> None:
        self.started.append(subprocess.Popen([sys.executable, "-m", "prefect", *command], process_group=0))

    def _wait_for_server(self) -> None:
        end = time.monotonic() + START_SECONDS
        while not _answers(self.url):
            if self.started[0].poll() is not None or time.monotonic() > end:
                raise SystemExit(f"error: the Prefect server does not answer at {self.url}")
            time.sleep(0.5)

    def _register(self) -> None:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            client.upsert_global_concurrency_limit_by_name(LIMIT, self.slots)
        for command in (
            ["work-pool", "create", POOL, "--type", "process", "--overwrite"],
            ["--no-prompt", "deploy", "--all"],
        ):
            subprocess.run([sys.executable, "-m", "prefect", *command], check=True, stdout=subprocess.DEVNULL)

    def _stop(self) -> None:
        """Runs first, then the worker, then the server."""
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)
        if len(self.started) == 2 and self.started[0].poll() is None:
            _cancel_runs()
        for process in reversed(self.started):
            process.terminate()
            try:
                process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _cancel_runs() -> None:
    """Cancel what runs or is about to, and wait until it has ended."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelling

    active = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    some = FlowRunFilter.model_validate({"state": {"type": {"any_": active}}})
    pool = WorkPoolFilter.model_validate({"name": {"any_": [POOL]}})
    with get_client(sync_client=True) as client:
        end = time.monotonic() + STOP_SECONDS
        while (runs := client.read_flow_runs(flow_run_filter=some, work_pool_filter=pool)) and time.monotonic() < end:
            for run in runs:
                if run.state is not None and not run.state.is_cancelling():
                    print(f"cancelling {run.name}", flush=True)
                    client.set_flow_run_state(run.id, Cancelling(message="The service is being stopped"), force=True)
            time.sleep(1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT, help=f"port of the server on {HOST}")
    parser.add_argument("--slots", type=int, default=1, help=f"stages that may hold the limit `{LIMIT}` at once")
    args = parser.parse_args()
    os.environ["PREFECT_API_URL"] = f"http://{HOST}:{args.port}/api"  # before Prefect is imported
    os.environ.setdefault("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", LEASES)
    return Service(args.port, args.slots).run()


if __name__ == "__main__":
    sys.exit(main())
