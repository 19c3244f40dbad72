"""The pipeline as a Prefect flow: `python -m flows.pipeline [--stage sft]`, with or without a server.

One task per DVC stage, in the order of DVC's graph. DVC skips what is up to date.
"""

import argparse
import sys
from collections.abc import Callable

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.tasks import Task, exponential_backoff

from flows.graph import Stage, read_stages
from flows.outcome import StageFailedError
from flows.stage import run_stage

RETRY_JITTER = 0.5  # a delay is lengthened at random by up to this share of it


def worth_retrying(_task: Task, _run: TaskRun, state: State) -> bool:
    """Only where another attempt can end otherwise: stopped, killed, busy lock, network."""
    try:
        state.result()
    except StageFailedError as error:
        return error.outcome.worth_retrying
    except Exception:
        return False
    return False


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=worth_retrying)
def dvc_stage(stage: Stage, *, force: bool = False) -> str:
    """Run one stage. Returns how it went: ran, cached or unchanged. Raises: `StageFailedError`."""
    logger = get_run_logger()
    return run_stage(stage, lambda lines: logger.info("%s", "\n".join(lines)), force=force).kind


def with_policy(stage: Stage) -> Task[..., str]:
    """The task that runs `stage`, named after it and retried as its policy says."""
    policy = stage.policy
    return dvc_stage.with_options(
        name=stage.name,
        task_run_name=stage.name,
        retries=policy.retries,
        retry_delay_seconds=exponential_backoff(policy.retry_seconds) if policy.retries else 0,
        retry_jitter_factor=RETRY_JITTER,
    )


@flow(name="pipeline", log_prints=False)
def pipeline(stages: list[str] | None = None, upstream: bool = True, force: bool = False) -> dict[str, str]:
    """Bring stages up to date.

    Args:
        stages: which (default: all of dvc.yaml), by name.
        upstream: also what they depend on.
        force: run them even if nothing has changed.

    Returns: for each stage how it went: ran, cached or unchanged.
    """
    ended: dict[str, str] = {}
    for stage in read_stages(stages or [], upstream=upstream):
        run: Callable[..., str] = with_policy(stage)
        ended[stage.name] = run(stage, force=force)
    return ended


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__)
    parser.add_argument("--stage", action="append", default=[], help="stage to bring up to date; repeatable")
    parser.add_argument("--only", action="store_true", help="leave out what these stages depend on")
    parser.add_argument("--force", action="store_true", help="run them even if nothing has changed")
    args = parser.parse_args()
    try:
        pipeline(args.stage, upstream=not args.only, force=args.force)
    except (StageFailedError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
