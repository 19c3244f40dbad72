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
from collections.abc import Callable
from typing import NoReturn

from flows.processes import adopt_orphans, descendants, end_adopted, end_with_parent

HOST = "127.0.0.1"
PORT = 4200  # Prefect's own default
POOL = "qwen3llada"
LIMIT = "gpu"
START_SECONDS = 600  # a busy machine with two cores took three minutes
STOP_SECONDS = 150  # a stage gets grace_seconds to save, by default 120
# Leases of slots outlive a restart of the server. They are revoked if their holder was killed.
LEASES = "prefect.server.concurrency.lease_storage.filesystem"


class Service:
    """The processes of `make serve`, each in its own group: Ctrl-C reaches only this one, which stops the others."""

    def __init__(self, port: int, slots: int) -> None:
        self.url, self.port, self.slots = f"http://{HOST}:{port}/api", port, slots
        self.started: dict[str, subprocess.Popen] = {}

    def run(self) -> int:
        """Run until a signal, or until server or worker ends by itself (status 1)."""
        if _answers(self.url):
            print(f"error: a Prefect server is already running at {self.url}", file=sys.stderr)
            return 1
        for signum in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, _interrupt)
        adopt_orphans()  # those of a killed worker
        try:
            self._start("server", "start", "--host", HOST, "--port", str(self.port))
            self._wait_for_server()
            self._register()
            self._start("worker", "start", "--pool", POOL, "--type", "process")
            print(f"ready: {self.url.removesuffix('/api')} (Ctrl-C stops)", flush=True)
            while all(map(self._lives, self.started)):
                descendants(self._own())  # reaps dead ones
                time.sleep(0.5)
            ended = next(name for name in self.started if not self._lives(name))
            print(f"error: the {ended} has ended, status {self.started[ended].returncode}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 0
        finally:
            self._stop()

    def _start(self, name: str, *command: str) -> None:
        self.started[name] = subprocess.Popen(
            [sys.executable, "-m", "prefect", name, *command], process_group=0, preexec_fn=_before_exec
        )

    def _lives(self, name: str) -> bool:
        return name in self.started and self.started[name].poll() is None

    def _own(self) -> set[int]:
        """Ids of started processes that are alive or whose status has not been read."""
        return {process.pid for process in self.started.values() if process.returncode is None}

    def _wait_for_server(self) -> None:
        end = time.monotonic() + START_SECONDS
        while not _answers(self.url):
            if not self._lives("server") or time.monotonic() > end:
                raise SystemExit(f"error: the Prefect server does not answer at {self.url}")
            time.sleep(0.5)

    def _register(self) -> None:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import WorkPoolCreate
        from prefect.workers.process import ProcessWorker

        from flows.runs import end_lost_runs

        template = ProcessWorker.get_default_base_job_template()
        pool = WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template)
        with get_client(sync_client=True) as client:
            client.upsert_global_concurrency_limit_by_name(LIMIT, self.slots)
            client.create_work_pool(pool, overwrite=True)
        deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        subprocess.run(deploy, check=True, stdout=subprocess.DEVNULL)
        end_lost_runs(POOL)  # of a service that was killed, or whose machine went down

    def _stop(self) -> None:
        """Stop the runs first, then the worker and its leftovers, then the server."""
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)
        served = self._lives("server") and "worker" in self.started
        if served:
            from flows.runs import cancel_runs, end_lost_runs

            _ask_server(lambda: cancel_runs(POOL, STOP_SECONDS, lambda: self._lives("worker")))
        self._end("worker")
        end_adopted(self._own(), STOP_SECONDS)
        if served:
            _ask_server(lambda: end_lost_runs(POOL))
        self._end("server")
        end_adopted(self._own(), STOP_SECONDS)

    def _end(self, name: str) -> None:
        if self._lives(name):
            self.started[name].terminate()
            try:
                self.started[name].wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.started[name].kill()
                self.started[name].wait()


def _before_exec() -> None:
    """Runs in the child. Prefect's worker stops by sending itself SIGINT, which `make serve &` in a script ignores."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _ask_server(request: Callable[[], None]) -> None:
    """Send a request while stopping. If the server is gone, the rest must still be ended."""
    import httpx

    try:
        request()
    except httpx.HTTPError as error:
        print(f"the server does not answer: {error}", file=sys.stderr)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT, help=f"port of the server on {HOST}")
    parser.add_argument("--slots", type=int, default=1, help=f"stages that may hold the limit `{LIMIT}` at once")
    args = parser.parse_args()
    os.environ["PREFECT_API_URL"] = f"http://{HOST}:{args.port}/api"  # must be set before Prefect is imported
    os.environ.setdefault("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", LEASES)
    return Service(args.port, args.slots).run()


if __name__ == "__main__":
    sys.exit(main())
