"""The stages and their order, read from DVC's own graph, so that a stage added to `dvc.yaml` is in the flow.

DVC is imported in a subprocess: it takes a second, keeps global state, and must see `dvc.yaml` as it is now.
`meta.flow` of a stage in `dvc.yaml` says how the flow treats it; the keys are the fields of `Policy`.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.environment import environment


class Policy(BaseModel):
    """How the flow treats a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    retries: int = Field(default=2, ge=0, le=100, description="Further attempts where one can help, 0 to 100")
    retry_seconds: float = Field(
        default=10,
        gt=0,
        le=86_400,
        description="Delay before the first of them, above 0, up to 86,400; doubled for each later one, with jitter",
    )
    timeout_minutes: float = Field(
        default=0, ge=0, le=1_000_000, description="The stage is stopped after this time, up to 1,000,000; 0: never"
    )
    grace_seconds: float = Field(
        default=120,
        gt=0,
        le=86_400,
        description="Time that a stopped stage gets to save and end before it is killed, above 0, up to 86,400",
    )
    always: bool = Field(default=False, description="Run even if nothing has changed, as with --force")
    limit: str | None = Field(
        default=None, description="Global concurrency limit of Prefect of which the stage takes one slot, such as gpu"
    )


@dataclass(frozen=True)
class Stage:
    """One stage of `dvc.yaml`."""

    name: str
    policy: Policy = field(default_factory=Policy)


def read_stages(targets: list[str], *, upstream: bool = True, root: Path = Path()) -> list[Stage]:
    """The stages of the project at `root` that `dvc repro TARGETS` would go through, in its order.

    No targets: all stages. `upstream=False` leaves out what the targets depend on.
    Raises: ValueError with DVC's own message for an unknown target or a broken `dvc.yaml`, or for a wrong `meta.flow`.
    """
    command = [sys.executable, "-m", "flows.graph", *(["--only"] if not upstream else []), *targets]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), cwd=root)
    if done.returncode != 0:
        raise ValueError(f"dvc.yaml: {done.stderr.strip() or f'reading it ended with status {done.returncode}'}")
    return [_stage(entry["name"], entry["flow"]) for entry in json.loads(done.stdout)]


def _stage(name: str, settings: dict) -> Stage:
    try:
        return Stage(name, Policy(**settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("meta.flow", *first["loc"]))
        raise ValueError(f"dvc.yaml: {name}: {key}: given {first['input']!r}: {first['msg']}") from error


def _main(targets: list[str], *, upstream: bool) -> list[dict]:
    from dvc.repo import Repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
    from dvc.stage import PipelineStage

    with Repo() as repo:
        chosen = collect_stages(repo, targets or ["dvc.yaml"])
        steps = plan_repro(get_active_graph(repo.index.graph), chosen)
        if not upstream:
            steps = [stage for stage in steps if stage in chosen]
        stages = [stage for stage in steps if isinstance(stage, PipelineStage)]
        return [{"name": s.addressing, "flow": dict((s.meta or {}).get("flow") or {})} for s in stages]


if __name__ == "__main__":
    from dvc.exceptions import DvcException

    arguments = sys.argv[1:]
    try:
        print(json.dumps(_main([a for a in arguments if a != "--only"], upstream="--only" not in arguments)))
    except DvcException as problem:
        sys.exit(" ".join(str(problem).split()))
