"""A sweep over variants of the parameters as a Prefect flow: `python -m flows.sweep [--axis KEY=VALUE,VALUE]`.

Each variant runs in a clone of the workspace and becomes a DVC experiment of it: `dvc exp show`, `dvc params diff` and
`dvc exp apply` know it. The workspace is not touched. Stages that variants share run once: the first variant runs
alone and fills DVC's run cache.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed, State

from flows.artifacts import artifact_key, read_metrics
from flows.comparison import check_metric, choose_metric, write_comparison
from flows.graph import read_stages
from flows.interruption import Interrupted, interruptible
from flows.outcome import StageFailedError
from flows.pipeline import run_stages
from flows.processes import exit_status
from flows.stage import stop_all
from flows.states import end_of_flow, end_of_task, report, result_of
from flows.temporary import bind_server_to_this_process
from flows.variants import Variant, clone, expand, save

DEFAULT_GRID = {"pretrain.loss_impl,sft.loss_impl": ["guidelines", "dllm", "soft_ce"]}


@task(cache_policy=NO_CACHE, persist_result=False)
def run_variant(variant: Variant, made: Path | Exception, stages: list[str]) -> dict[str, Any] | State:
    """Run one variant in its clone. Returns its row of the result, with the reason of a failure in `error`.

    Returns a cancelled state if it was told to stop.

    Args:
        made: the clone, or the error in making it.
    """
    started = time.monotonic()
    row: dict[str, Any] = {"name": variant.name, "overrides": list(variant.overrides), "metrics": {}, "error": None}
    try:
        if isinstance(made, Exception):
            raise made
        with interruptible():
            row["stages"] = run_stages(read_stages(stages, root=made), root=made, label=f"{variant.name} ")
            row["metrics"] = read_metrics(made)
            save(made, variant, row["stages"])
    except Interrupted as stop:
        return end_of_task(Interrupted(f"{variant.name}: {stop}"))
    except (StageFailedError, RuntimeError, ValueError) as error:
        row["error"] = str(error)
    return row | {"seconds": round(time.monotonic() - started, 1)}


@flow(name="sweep", persist_result=False)
def sweep(
    grid: dict[str, list[str]] | None = None,
    stages: list[str] | None = None,
    jobs: int = 1,
    name: str = "sweep",
    metric: str | None = None,
) -> State:
    """Run all combinations of a grid of overrides, and compare them.

    Args:
        grid: values by parameter; `a.key,b.key` sets both. None given: the three losses, in pretraining and SFT.
        stages: what to bring up to date in each variant (default: all of dvc.yaml).
        jobs: variants that run at once; stages with a concurrency limit still wait for its slots.
        name: first part of the experiments' names.
        metric: what to compare, as `file:key`; none given: the likelihood bound, or else a held-out loss.

    Returns: a state that holds the rows of reports/sweep.json; failed if a variant failed.
    """
    if jobs < 1:
        return Failed(message=f"jobs={jobs} must be 1 or more")
    try:
        variants = expand(grid or DEFAULT_GRID, name)
        if metric is not None:
            check_metric(metric, [file for stage in read_stages(stages or []) for file in stage.metrics])
        with interruptible():
            _check_stages(stages)
            rows = _run(variants, stages or [], jobs)
            write_comparison(rows, metric or choose_metric(rows, None))  # also if the next line finds no such key
            compared = choose_metric(rows, metric)
    except Interrupted as stop:
        return end_of_flow(stop)
    except ValueError as error:
        return Failed(message=str(error))
    table = [
        {"variant": r["name"], compared or "metric": r["metrics"].get(compared), "error": r["error"]} for r in rows
    ]
    create_table_artifact(table, key=artifact_key(name), description="Variants, and the metric that compares them")
    if failed := [row for row in rows if row["error"]]:
        return Failed(message="; ".join(f"{row['name']}: {row['error']}" for row in failed), data=rows)
    return Completed(message=f"{len(rows)} variants", data=rows)


def _check_stages(stages: list[str] | None) -> None:
    """Raises: ValueError as `read_stages` for a stage that does not exist, before clones are made."""
    if stages:
        read_stages(stages)


def _run(variants: list[Variant], stages: list[str], jobs: int) -> list[dict[str, Any]]:
    """Run the first variant alone, then at most `jobs` at once. Returns rows in the order of `variants`."""
    # Clone all before the first run, so that edits and commits during the sweep do not affect later variants.
    made = {variant.name: _clone(variant) for variant in variants}
    first = variants[0]
    rows = {first.name: result_of(_named(first)(first, made[first.name], stages, return_state=True))}
    waiting = list(variants[1:])
    running: dict[PrefectFuture, Variant] = {}
    try:
        with interruptible():
            while waiting or running:
                while waiting and len(running) < jobs:
                    variant = waiting.pop(0)
                    running[_named(variant).submit(variant, made[variant.name], stages)] = variant
                future = next(as_completed(list(running)))
                future.wait()  # `state` is the final one only after this; as_completed does not set it
                rows[running.pop(future).name] = result_of(future.state)
    except BaseException as cause:
        stop_all()  # variants run in threads, which a signal does not reach
        for future in running:
            future.wait()
        if isinstance(cause, Interrupted):
            said = [str(future.state.message) for future in running if future.state.is_cancelled()]
            raise Interrupted("; ".join(said) or str(cause)) from cause
        raise
    return [rows[variant.name] for variant in variants]


def _clone(variant: Variant) -> Path | Exception:
    try:
        return clone(Path().resolve(), variant)
    except (StageFailedError, RuntimeError) as error:
        return error


def axes(texts: Sequence[str]) -> dict[str, list[str]]:
    """The grid that the values of `--axis` describe.

    Raises: ValueError for one that is not KEY[,KEY]=VALUE[,VALUE], or that names keys a second time.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        keys, equals, values = text.partition("=")
        if not (equals and all(keys.split(",")) and all(values.split(","))):
            raise ValueError(f"--axis {text}: must be KEY[,KEY]=VALUE[,VALUE], such as sft.optim.lr=1e-3,5e-4")
        if keys in grid:
            raise ValueError(f"--axis {text}: {keys} is given twice; list its values in one --axis")
        grid[keys] = values.split(",")
    return grid


def _named(variant: Variant):
    return run_variant.with_options(task_run_name=variant.name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.sweep", description=__doc__)
    parser.add_argument(
        "--axis", action="append", default=[], metavar="KEY[,KEY]=VALUE,VALUE", help="parameter and values; repeatable"
    )
    parser.add_argument("--stage", action="append", default=[], help="stage to bring up to date; repeatable")
    parser.add_argument("--jobs", type=int, default=1, help="variants that run at once")
    parser.add_argument("--name", default="sweep", help="first part of the experiments' names")
    parser.add_argument("--metric", help="metric to compare, as FILE:KEY, such as reports/sample.json:exact_match")
    args = parser.parse_args()
    try:  # before a server starts
        grid = axes(args.axis)
        expand(grid or DEFAULT_GRID, args.name)
        _check_stages(args.stage)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bind_server_to_this_process()
    state = sweep(grid, args.stage, args.jobs, args.name, args.metric, return_state=True)
    return report(state)


if __name__ == "__main__":
    sys.exit(exit_status(main))
