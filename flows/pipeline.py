"""The pipeline as a Prefect flow: `python -m flows.pipeline [--stage sft]`, with or without a server.

One task per DVC stage, in the order of DVC's graph. DVC skips what is up to date.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.tasks import Task, exponential_backoff

from flows.artifacts import Progress, publish_results, read_metrics
from flows.graph import Stage, read_stages
from flows.interruption import Interrupted, interruptible
from flows.limits import slot
from flows.outcome import StageFailedError
from flows.processes import exit_status
from flows.stage import run_stage
from flows.states import end_of_flow, end_of_task, report, result_of
from flows.temporary import bind_server_to_this_process
from flows.workspace import workspace

RETRY_JITTER = 0.5  # maximal random increase of a delay, as a share of it


def worth_retrying(_task: Task, _run: TaskRun, state: State) -> bool:
    """Whether another attempt may end differently: stopped, killed, busy lock, network."""
    try:
        state.result()
    except StageFailedError as error:
        return error.outcome.worth_retrying
    except Exception:
        return False
    return False


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=worth_retrying)
def dvc_stage(stage: Stage, *, force: bool = False, root: Path = Path(), label: str = "") -> str | State:
    """Run one stage of the project at `root`. `label` distinguishes its artifacts from those of other projects.

    Returns: ran, cached or unchanged; a cancelled state if the stage was told to stop. Raises: `StageFailedError`.
    """
    logger, progress = get_run_logger(), Progress(f"{label}{stage.name}")

    def show(lines: list[str]) -> None:
        logger.info("%s", "\n".join(lines))
        progress.see(lines)

    try:
        with interruptible(), slot(stage.policy.limit):
            kind = run_stage(stage, show, force=force or stage.policy.always, root=root).kind
    except Interrupted as stop:
        return end_of_task(stop)
    progress.finish()
    return kind


def run_stages(stages: list[Stage], *, force: bool = False, root: Path = Path(), label: str = "") -> dict[str, str]:
    """Run a task per stage, one after another. Returns how each ended.

    Raises: `StageFailedError` of the first failure; `Interrupted` if a stage was told to stop.
    """
    ended: dict[str, str] = {}
    for stage in stages:
        run: Callable[..., State] = with_policy(stage, label)
        ended[stage.name] = result_of(run(stage, force=force, root=root, label=label, return_state=True))
    return ended


def with_policy(stage: Stage, label: str) -> Task[..., str]:
    """The task for `stage`: named after it, with the retries of its policy."""
    policy = stage.policy
    return dvc_stage.with_options(
        name=stage.name,
        task_run_name=f"{label}{stage.name}",
        retries=policy.retries,
        retry_delay_seconds=exponential_backoff(policy.retry_seconds) if policy.retries else 0,
        retry_jitter_factor=RETRY_JITTER,
    )


@flow(name="pipeline", persist_result=False)
def pipeline(
    stages: list[str] | None = None,
    upstream: bool = True,
    params: str | None = None,
    overrides: list[str] | None = None,
    force: bool = False,
) -> State:
    """Bring stages up to date, and show what came of it.

    Args:
        stages: which, by name; none given: all of dvc.yaml.
        upstream: also what they depend on.
        params: a parameter set (`configs/NAME.yaml`) to put into params.yaml first.
        overrides: `section.key=value`, put into params.yaml on top of it.
        force: run the stages even if nothing has changed.

    Returns: a state that holds for each stage how it went (ran, cached or unchanged), or says why one failed.
    """
    try:
        with interruptible(), workspace(params, overrides or []):
            before = read_metrics()
            ended = run_stages(read_stages(stages or [], upstream=upstream), force=force)
            publish_results(before)
    except Interrupted as stop:
        return end_of_flow(stop)
    except (StageFailedError, ValueError) as error:
        return Failed(message=str(error))  # one line; Prefect's traceback would not add anything
    return Completed(message=", ".join(f"{name} {kind}" for name, kind in ended.items()), data=ended)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__)
    parser.add_argument("--stage", action="append", default=[], help="stage to bring up to date; repeatable")
    parser.add_argument("--only", action="store_true", help="leave out what these stages depend on")
    parser.add_argument("--params", help="parameter set to put into params.yaml first")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="override; repeatable")
    parser.add_argument("--force", action="store_true", help="run them even if nothing has changed")
    args = parser.parse_args()
    try:
        if args.stage:  # report a mistyped name at once, not after a server has started
            read_stages(args.stage)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    bind_server_to_this_process()
    state = pipeline(
        args.stage, upstream=not args.only, params=args.params, overrides=args.set, force=args.force, return_state=True
    )
    return report(state)


if __name__ == "__main__":
    sys.exit(exit_status(main))
