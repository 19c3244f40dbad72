"""dvc.yaml: dependencies are the code and parameters that a stage uses; what becomes stale after a change."""

import ast
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML
from test_layers import ROOT, imported

from qwen3llada.artifacts import read_json
from qwen3llada.diffusion.losses import LOSSES
from qwen3llada.knob_variables import DVC_STAGE
from qwen3llada.params import Params

# Every stage reads its parameters through these; DVC tracks the values instead (`params:`).
BY_VALUE = {"qwen3llada/params.py", "qwen3llada/section.py"}
BY_VALUE |= {f"qwen3llada/commandline/{name}.py" for name in ("flags", "messages", "models", "yaml_file")}
BY_VALUE |= {"qwen3llada/knob_variables.py"}  # which sets nothing under DVC
BY_VALUE |= {"qwen3llada/evaluation/params.py"}  # sections and nothing else
BY_VALUE |= {"qwen3llada/errors.py", "qwen3llada/encodings.py"}  # an exception class, and words for messages
# They only refuse to run; no output depends on them.
BY_VALUE |= {
    "qwen3llada/destinations/check.py",
    "qwen3llada/destinations/kinds.py",
    "qwen3llada/folder_lock.py",
    "qwen3llada/tracked.py",
}
# Code that tokenizes streamed data during training. stream.json, an output of tokenize_pack, holds its hash.
BY_VALUE |= {"qwen3llada/corpus/text/text_stream.py"}
# Commands that are called by hand: what they make is for people and machines elsewhere.
BY_HAND = {"export", "push", "serve", "harness"}
yaml = YAML(typ="safe", pure=True)
DEFAULT = yaml.load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
ASIDE = yaml.load((ROOT / "post_training/dvc.yaml").read_text(encoding="utf-8"))["stages"]  # not in `dvc repro`
PIPELINE = DEFAULT | ASIDE
PARAMS = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def module_file(name: str) -> str | None:
    path = Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).is_file():
            return str(candidate)
    return None


def code_used(stage: str) -> set[str]:
    """Files of ours that `stages/NAME.py` imports, directly or through others, except what is tracked by value."""
    found: set[str] = set()
    waiting = [f"stages/{stage}.py"]
    while waiting:
        file = waiting.pop()
        if file in found or file in BY_VALUE:
            continue
        found.add(file)
        waiting += [f for name in imported(ROOT / file) if (f := module_file(name)) is not None]
    return {file for file in found if not file.endswith("__init__.py")}


def code_deps(stage: str) -> list[str]:
    return [dep for dep in PIPELINE[stage]["deps"] if dep.startswith(("stages/", "qwen3llada/"))]


@pytest.mark.parametrize("stage", PIPELINE)
def test_code_dependencies_are_what_is_imported(stage):
    used, deps = code_used(stage), code_deps(stage)

    def covers(dep: str, file: str) -> bool:
        return file == dep or file.startswith(dep.rstrip("/") + "/")

    assert not [file for file in used if not any(covers(dep, file) for dep in deps)], "imported, not in deps"
    assert not [dep for dep in deps if not any(covers(dep, file) for file in used)], "in deps, not imported"


@pytest.mark.parametrize("stage", PIPELINE)
def test_parameters_are_what_is_read(stage):
    """A stage declares its own section, and each entry that it names in `run_as_stage` or reads from `params`."""
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text(encoding="utf-8"))
    # The number of processes changes no output, so it is no parameter of the pipeline.
    neutral = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "num_proc"}
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "params"
        and id(node) not in neutral
    }
    read = {"validate" if name == "validation" else name for name in read} & set(PARAMS)
    declared = {str(key).split(".")[0] for key in PIPELINE[stage].get("params", [])}
    assert read == declared


def outputs(stage: str, kind: str) -> list[str]:
    return [next(iter(out)) if isinstance(out, dict) else out for out in PIPELINE[stage].get(kind, [])]


def test_nothing_is_tracked_that_the_machine_decides():
    """Files beside the outputs are no outputs, lie in no folder that is one, and are no dependencies."""
    reports = [PARAMS[phase]["reports"] for phase in ("pretrain", "sft", "rl")]
    beside = [f"{folder}/{name}" for folder in reports for name in ("speed.json", "speed.jsonl", "metrics.json")]
    beside += ["reports/report_run.js", "reports/history.jsonl", "reports/sample_throughput.json"]
    beside += ["reports/evaluate/throughput.json", "reports/tokenize_pack/throughput.json"]
    beside += ["reports/validation/index.html"]
    for stage in PIPELINE:
        named = [path for kind in ("outs", "metrics", "plots", "deps") for path in outputs(stage, kind)]
        for phase in ("pretrain", "sft", "rl"):
            named = [path.replace(f"${{{phase}.reports}}", PARAMS[phase]["reports"]) for path in named]
        assert not [(file, path) for file in beside for path in named if Path(file).is_relative_to(path)]


def test_metrics_are_the_few_numbers_that_people_compare(tmp_path, monkeypatch):
    """The other results of an evaluation go to an output that is no metric."""
    from qwen3llada.evaluation import eval_loss as package
    from stages import eval_loss

    assert {path for stage in PIPELINE for path in outputs(stage, "metrics")} == {
        "reports/eval_loss.json",
        "reports/evaluate.json",
        "reports/sample.json",
    }
    losses = dict.fromkeys(LOSSES, 0.5)
    levels = {f"0.{i}-0.{i + 1}": 1.0 for i in range(9)}
    found = {"loss": 0.5, "loss_impl": "dllm", **losses, "by_noise_level": levels, "samples": 7}
    monkeypatch.setattr(package, "evaluate_model", lambda *args, **kwargs: dict(found))
    monkeypatch.chdir(tmp_path)
    eval_loss.main(Params.model_validate(PARAMS))
    assert read_json("reports/eval_loss.json") == {"pretrain": losses, "sft": losses}
    details = {"loss": 0.5, "loss_impl": "dllm", "by_noise_level": levels, "samples": 7}
    assert read_json("reports/eval_loss_details.json") == {"pretrain": details, "sft": details}


def test_the_source_is_tracked_as_it_was_given(tmp_path, monkeypatch):
    """Not the download folder of a hub repository, which differs between machines."""
    from qwen3llada.corpus.fetch import download
    from qwen3llada.modeling import analyze as package
    from qwen3llada.modeling import comparison_table
    from stages import analyze

    report = SimpleNamespace(as_dict=lambda: {"ok": True, "source": "/home/me/.cache"}, raise_if_wrong=lambda: None)
    monkeypatch.setattr(download, "fetch_model", lambda source: Path("/home/me/.cache"))
    monkeypatch.setattr(package, "compare_checkpoints", lambda source, converted: report)
    monkeypatch.setattr(comparison_table, "show", lambda report: None)
    monkeypatch.chdir(tmp_path)
    params = Params.model_validate(PARAMS | {"convert": PARAMS["convert"] | {"src": "Qwen/Qwen3-0.6B-Base"}})
    analyze.main(params)
    assert read_json("reports/analyze.json") == {"ok": True, "source": "Qwen/Qwen3-0.6B-Base"}


def test_dvc_tells_a_command_which_stage_it_is():
    """By the variable that `knob_variables.py` checks."""
    from dvc.stage.run import prepare_kwargs

    stage = SimpleNamespace(wdir=".", repo=SimpleNamespace(root_dir="."), addressing="pretrain")
    assert prepare_kwargs(stage)["env"][DVC_STAGE] == "pretrain"


def test_every_stage_has_its_module_and_every_module_its_stage():
    modules = {path.stem for path in (ROOT / "stages").glob("[!_]*.py")}
    assert modules == set(PIPELINE) | BY_HAND


# One process for all questions, because importing DVC takes seconds. Each line asks: the outputs' names, to record the
# outputs as they are, or what is stale.
ASKED = """
import json, sys
from dvc.repo import Repo

for question in map(str.strip, sys.stdin):
    with Repo(".") as repo:
        if question == "outputs":
            said = sorted(str(out) for stage in repo.index.stages for out in stage.outs)
        elif question == "record":
            said = len(repo.commit(force=True))
        else:
            said = sorted(repo.status())
    print("answer " + json.dumps(said), flush=True)
"""


class Dvc:
    """DVC in a folder."""

    def __init__(self, folder: Path) -> None:
        env = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_GLOBAL_CONFIG_DIR": str(folder / ".global")}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, "-c", ASKED], cwd=folder, env=env, **pipes)

    def ask(self, question: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError(f"DVC ended with status {self.process.wait()}")


def leaves(tree: dict, prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for key, value in tree.items():
        out |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """DVC in the project with stand-in outputs, recorded as up to date without running a stage."""
    folder = tmp_path_factory.mktemp("project")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    dvc = Dvc(folder)
    for number, out in enumerate(dvc.ask("outputs")):
        (folder / out).parent.mkdir(parents=True, exist_ok=True)
        (folder / out).write_text(f"{{}}{' ' * number}")
    dvc.ask("record")
    yield dvc
    dvc.process.kill()
    dvc.process.communicate()


def stale_after(dvc: Dvc, edit: dict[str, object]) -> set[str]:
    path = dvc.folder / "params.yaml"
    before = path.read_text(encoding="utf-8")
    tree = copy.deepcopy(PARAMS)
    for key, value in edit.items():
        *above, last = key.split(".")
        at = tree
        for part in above:
            at = at[part]
        assert last in at, f"{key} is not in params.yaml"
        assert at[last] != value, f"{key} is {value} already"
        at[last] = value
    try:
        path.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML, and quick to write and to read
        return set(dvc.ask("stale"))
    finally:
        path.write_text(before, encoding="utf-8")


@pytest.mark.slow
def test_nothing_is_stale_without_a_change(recorded):
    assert stale_after(recorded, {}) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "stale"),
    [
        ({"sample.temperature": 0.5}, {"sample", "evaluate", "report"}),
        ({"sft.loss_impl": "dllm"}, {"sft", "eval_loss"}),
        ({"pretrain.loss_impl": "dllm"}, {"pretrain", "eval_loss"}),
        ({"pretrain.noise.schedule": "cosine"}, {"pretrain", "eval_loss"}),
        ({"validate.on_invalid": "quarantine"}, {"validate"}),
        ({"convert.mask_token": "600"}, {"convert", "analyze"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_change_makes_only_its_own_stages_stale(recorded, edit, stale):
    """New outputs decide what runs downstream; upstream stages never run again."""
    assert stale_after(recorded, edit) == stale


@pytest.mark.slow
def test_the_second_pipeline_is_left_out_of_repro_and_joins_the_flow_by_name(recorded):
    """`dvc repro` runs dvc.yaml of the project's folder; the flow knows other stages by DVC's address."""
    from flows.graph import read_stages

    assert "rl" not in DEFAULT
    asked = read_stages(["post_training/dvc.yaml:rl"], root=recorded.folder)
    assert [stage.name for stage in asked][-2:] == ["sft", "post_training/dvc.yaml:rl"]
    assert (asked[-1].policy.limit, asked[-1].policy.retries > 0) == ("gpu", True)
    assert "post_training/dvc.yaml:rl" in stale_after(recorded, {"rl.kl": 0.5})


def test_outputs_of_the_second_pipeline_are_not_missed_by_dvc_checkout():
    """`dvc checkout` looks at every pipeline, and fails for cached outputs that were never made."""
    named = [out for stage in ASIDE.values() for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    assert named
    assert all(isinstance(out, dict) and next(iter(out.values()))["cache"] is False for out in named)
