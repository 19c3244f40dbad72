"""Requests of the service to the server about runs in its work pool: cancel runs, and end lost ones."""

import time
from collections.abc import Callable

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelling, Crashed

ACTIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def cancel_runs(pool: str, seconds: float, worker_lives: Callable[[], bool]) -> None:
    """Cancel running and pending runs in `pool`, and wait at most `seconds` until its worker has ended them."""
    end = time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        while worker_lives() and (runs := _active(client, pool)) and time.monotonic() < end:
            for run in runs:
                if run.state is not None and not run.state.is_cancelling():
                    print(f"cancelling {run.name}", flush=True)
                    client.set_flow_run_state(run.id, Cancelling(message="The service is being stopped"), force=True)
            time.sleep(1)


def end_lost_runs(pool: str) -> None:
    """Mark runs in `pool` that still count as active as crashed. Call it when no process of any run is left.

    Otherwise a run whose worker was killed would stay active forever and block the next one of its deployment.
    """
    with get_client(sync_client=True) as client:
        for run in _active(client, pool):
            print(f"{run.name}: its process is gone", flush=True)
            client.set_flow_run_state(run.id, Crashed(message="Its process was killed"), force=True)


def _active(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    states = FlowRunFilter.model_validate({"state": {"type": {"any_": ACTIVE}}})
    return client.read_flow_runs(
        flow_run_filter=states, work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}})
    )
