"""`python -m flows.serve` in a project, as `make serve` starts it, and the client of its API."""

import functools
import signal
import socket
from pathlib import Path

PATIENCE = 200  # seconds; a wait ends as soon as its condition holds
LONG_PATIENCE = 1800  # for training of the built-in model


class Service:
    """`python -m flows.serve` in a project, and the client of its API."""

    def __init__(self, project, home: Path, **variables: str) -> None:
        self.project = project
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.variables = {"PREFECT_HOME": str(home), "PREFECT_API_URL": self.url} | variables
        self.start()

    def start(self) -> None:
        self.log = open(self.project.root.parent / "service.log", "w")  # noqa: SIM115 - lives as long as the process
        self.process = self.project.start(
            "-m", "flows.serve", "--port", str(self.port), stdout=self.log, variables=self.variables
        )
        self.project.wait_until(lambda: "ready: " in self.said() or self.process.poll() is not None, PATIENCE)
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        """Its output since the last start."""
        return Path(self.log.name).read_text()

    def stop(self) -> None:
        if client := self.__dict__.pop("asked", None):
            client.__exit__(None, None, None)
        self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE)

    def client(self):
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.url)

    @functools.cached_property
    def asked(self):
        """One client for all polls: creating a client reads all certificates."""
        return self.client().__enter__()

    def submit(self, name="once", flow="pipeline", **parameters):
        with self.client() as client:
            deployment = client.read_deployment_by_name(f"{flow}/{name}")
            return client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def state(self, run):
        return self.asked.read_flow_run(run).state

    def ended(self, run, seconds=PATIENCE):
        self.project.wait_until(lambda: self.state(run).is_final(), seconds)
        return self.state(run)

    def task_runs(self, run) -> dict:
        """The run's task runs, by name."""
        from prefect.client.schemas.filters import FlowRunFilter

        one = FlowRunFilter.model_validate({"id": {"any_": [run]}})
        return {task.name: task for task in self.asked.read_task_runs(flow_run_filter=one)}

    def ended_task(self, run, name: str):
        """The run's task run of that name, once it has a final state, which the server records after the run's own."""

        def is_final() -> bool:
            task = self.task_runs(run).get(name)
            return task is not None and task.state is not None and task.state.is_final()

        self.project.wait_until(is_final, PATIENCE)
        return self.task_runs(run)[name]

    def artifacts(self, run) -> dict:
        """Content of the run's artifacts by key, the newest one, because a retried stage makes new ones."""
        from prefect.client.schemas.filters import FlowRunFilter

        one = FlowRunFilter.model_validate({"id": {"any_": [run]}})
        with self.client() as client:
            made = sorted(client.read_artifacts(flow_run_filter=one), key=lambda artifact: artifact.created)
            return {artifact.key: artifact.data for artifact in made}
