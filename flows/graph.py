"""The stages and their order, from DVC's own graph, so that a stage added to `dvc.yaml` joins the flow.

DVC is imported in a subprocess: the import takes a second, keeps global state, and must see the current `dvc.yaml`.
`meta.flow` of a stage in `dvc.yaml` sets how the flow treats it; its keys are the fields of `Policy`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

from flows.environment import child_environment

PARAMS = "params.yaml"


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
    reads: tuple[str, ...] = Field(
        default=(),
        description="Parameters that name a file, folder or glob which the stage reads, section.key each; of a list of "
        "sections, the key in each. A sweep takes what they name into its clones, even if git ignores it",
    )


@dataclass(frozen=True)
class Stage:
    """One stage of `dvc.yaml`."""

    name: str
    policy: Policy = field(default_factory=Policy)
    sources: tuple[str, ...] = ()  # dependencies that no stage makes, relative to the root
    metrics: tuple[str, ...] = ()  # files of metrics that it writes, relative to the root


def read_stages(targets: list[str], *, upstream: bool = True, root: Path = Path()) -> list[Stage]:
    """The stages of the project at `root` that `dvc repro TARGETS` would run, in order.

    No targets: all stages. `upstream=False` excludes dependencies of the targets.
    Raises: ValueError naming an unknown target and the existing stages, with DVC's message for a broken `dvc.yaml`, or
        for a wrong `meta.flow`.
    """
    command = [sys.executable, "-m", "flows.graph", *(["--only"] if not upstream else []), *targets]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment(), cwd=root)
    if done.returncode != 0:
        raise ValueError(f"dvc.yaml: {done.stderr.strip() or f'reading it ended with status {done.returncode}'}")
    return [_stage(**entry) for entry in json.loads(done.stdout)]


def read_inputs(root: Path) -> list[tuple[str, str]]:
    """Inputs of the stages of the project at `root` that no stage makes, as (where it is given, path) pairs.

    These are dependencies, and values of the parameters in `meta.flow.reads`, which may be other things than paths.
    Raises: ValueError as `read_stages`, or for a key in `meta.flow.reads` that params.yaml does not have.
    """
    tree = YAML(typ="safe", pure=True).load((root / PARAMS).read_text(encoding="utf-8"))
    inputs = []
    for stage in read_stages([], root=root):
        inputs += [(f"dvc.yaml: {stage.name}: deps", path) for path in stage.sources]
        for key in stage.policy.reads:
            try:
                inputs += [(f"{PARAMS}: {key}", value) for value in _values(tree, key.split("."))]
            except (KeyError, TypeError):
                raise ValueError(f"dvc.yaml: {stage.name}: meta.flow.reads: {key} must be a key of {PARAMS}") from None
    return inputs


def _values(tree: Any, keys: list[str]) -> list[str]:
    """The strings at a key. If there is a list on the way, those of all its entries."""
    if isinstance(tree, list):
        return [value for entry in tree for value in _values(entry, keys)]
    if keys:
        return _values(tree[keys[0]], keys[1:])
    return [tree] if isinstance(tree, str) else []


def _stage(name: str, flow: dict, sources: Sequence[str] = (), metrics: Sequence[str] = ()) -> Stage:
    try:
        return Stage(name, Policy(**flow), tuple(sources), tuple(metrics))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("meta.flow", *first["loc"]))
        raise ValueError(f"dvc.yaml: {name}: {key}: given {first['input']!r}: {first['msg']}") from error


def _main(targets: list[str], *, upstream: bool) -> list[dict]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
    from dvc.stage import PipelineStage
    from dvc.stage.exceptions import StageNotFound

    with Repo() as repo:
        try:
            chosen = collect_stages(repo, targets or ["dvc.yaml"])
        except StageNotFound as error:
            names = ", ".join(stage.addressing for stage in repo.index.stages)
            raise DvcException(f"no stage {error.name!r}; there are {names}") from None
        steps = plan_repro(get_active_graph(repo.index.graph), chosen)
        if not upstream:
            steps = [stage for stage in steps if stage in chosen]
        stages = [stage for stage in steps if isinstance(stage, PipelineStage)]
        made = [Path(out.fs_path) for s in repo.index.stages if isinstance(s, PipelineStage) for out in s.outs]
        return [
            {
                "name": s.addressing,
                "flow": dict((s.meta or {}).get("flow") or {}),
                "sources": [_given(dep, repo.root_dir) for dep in s.deps if _unmade(dep, made)],
                "metrics": [_given(out, repo.root_dir) for out in s.outs if out.metric],
            }
            for s in stages
        ]


def _given(dep: Any, root: str) -> str:
    """The path of a dependency or output: relative to the root, or absolute if it is so in dvc.yaml."""
    return dep.fs_path if os.path.isabs(dep.def_path) else os.path.relpath(dep.fs_path, root)


def _unmade(dep: Any, made: list[Path]) -> bool:
    """Whether a dependency is a local path that is not an output of a stage, nor contains or lies in one."""
    if dep.protocol != "local" or type(dep).__name__ == "ParamsDependency":
        return False
    path = Path(dep.fs_path)
    return not any(path.is_relative_to(out) or out.is_relative_to(path) for out in made)


if __name__ == "__main__":
    from dvc.exceptions import DvcException

    arguments = sys.argv[1:]
    try:
        print(json.dumps(_main([a for a in arguments if a != "--only"], upstream="--only" not in arguments)))
    except DvcException as problem:
        sys.exit(" ".join(str(problem).split()))
