"""The stages and their order, read from DVC's own graph, so that a stage added to `dvc.yaml` is in the flow.

DVC is imported in a subprocess: it takes a second, keeps global state, and must see `dvc.yaml` as it is now.
`meta.flow` of a stage in `dvc.yaml` says how the flow treats it; the keys are the fields of `Policy`.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How the flow treats a stage. Raises ValueError, naming the key, for a value that is not allowed."""

    retries: int = 2
    """Further attempts where one can help; 0 or more."""
    retry_seconds: float = 10.0
    """Delay before the first further attempt; doubled for each one after it, with jitter. Above 0."""
    timeout_minutes: float = 0.0
    """The stage is stopped after this; 0: never."""
    grace_seconds: float = 120.0
    """Time that a stopped stage gets to save and end before it is killed; above 0."""
    limit: str | None = None
    """Prefect's global concurrency limit of which the stage occupies one slot, such as `gpu`."""

    def __post_init__(self) -> None:
        for name, lowest in {"retries": 0, "timeout_minutes": 0}.items():
            if not getattr(self, name) >= lowest:
                raise ValueError(f"meta.flow.{name}={getattr(self, name)!r} must be {lowest} or more")
        for name in ("retry_seconds", "grace_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"meta.flow.{name}={getattr(self, name)!r} must be above 0")


@dataclass(frozen=True)
class Stage:
    """One stage of `dvc.yaml`."""

    name: str
    policy: Policy = field(default_factory=Policy)


def read_stages(targets: list[str], *, upstream: bool = True) -> list[Stage]:
    """The stages that `dvc repro TARGETS` would go through, in its order; all of them for no targets.

    `upstream=False` leaves out what the targets depend on.
    Raises: ValueError with DVC's own message for an unknown target or a broken `dvc.yaml`, or for a wrong `meta.flow`.
    """
    command = [sys.executable, "-m", "flows.graph", *(["--only"] if not upstream else []), *targets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"dvc.yaml: {done.stderr.strip() or f'reading it ended with status {done.returncode}'}")
    return [_stage(entry["name"], entry["flow"]) for entry in json.loads(done.stdout)]


def _stage(name: str, settings: dict) -> Stage:
    known = [entry.name for entry in fields(Policy)]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"dvc.yaml: {name}: meta.flow.{unknown[0]}: unknown key; allowed: {', '.join(known)}")
    try:
        return Stage(name, Policy(**settings))
    except (ValueError, TypeError) as error:
        raise ValueError(f"dvc.yaml: {name}: {error}") from error


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
