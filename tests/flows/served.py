"""The flow with a Prefect server: `python served.py` in a project prints JSON.

A process of its own, because one in which a flow has run cannot fork any more: Prefect's hooks fail at the exit of
each child, and the data loaders and trainers of other tests fork.
"""

import json
from typing import Any

import flows  # noqa: F401  telemetry off


def run() -> dict[str, Any]:
    """The flow up to `measure` in this folder's project, and what it left on the server."""
    from prefect.client.orchestration import get_client

    from flows.pipeline import pipeline

    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("gpu", 1)
    scheduled = schedule_every_minute()
    state = pipeline(["measure"], return_state=True)
    with get_client(sync_client=True) as client:
        made = sorted(client.read_artifacts(), key=lambda artifact: artifact.created)  # a retried stage makes a second
        artifacts = {artifact.key: artifact.data for artifact in made}
        slots = client.read_global_concurrency_limit_by_name("gpu").active_slots
    result = state.result(raise_on_failure=False) if state.is_completed() else None
    return {
        "state": state.name,
        "message": state.message,
        "result": result,
        "artifacts": artifacts,
        "slots": slots,
        "scheduled": scheduled,
    }


def schedule_every_minute() -> int:
    """How many runs the server plans for a deployment with a cron schedule."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.exceptions import PrefectHTTPStatusError

    from flows.pipeline import pipeline

    minute = DeploymentScheduleCreate(schedule=CronSchedule(cron="* * * * *"))
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(pipeline), name="minute", schedules=[minute])
        try:
            client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json={})
        except PrefectHTTPStatusError:
            return 0  # the server's log says why
        return sum(run.auto_scheduled for run in client.read_flow_runs())


if __name__ == "__main__":
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        print(json.dumps(run()))
