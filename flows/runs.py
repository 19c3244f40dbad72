"""What the service tells the server about the runs of its work pool: cancel them, and end those that are lost."""

import time
from collections.abc import Callable

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelling, Crashed

ACTIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def cancel_runs(pool: str, seconds: float, worker_lives: Callable[[], bool]) -> None:
    """Cancel what runs in `pool` or is about to, and wait until its worker has ended it, at most `seconds`."""
    end = time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        while worker_lives() and (runs := _active(client, pool)) and time.monotonic() < end:
            for run in runs:
                if run.state is not None and not run.state.is_cancelling():
                    print(f"cancelling {run.name}", flush=True)
                    client.set_flow_run_state(run.id, Cancelling(message="The service is being stopped"), force=True)
            time.sleep(1)


def end_lost_runs(pool: str) -> None:
    """Call what still counts as active in `pool` crashed. For when no process of any run is left.

    Otherwise a run whose worker was killed would count for ever, and keep the next one of its deployment waiting.
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
