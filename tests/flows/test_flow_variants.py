"""Variants of a sweep, and the clones in which they run."""

import os
import sys

import pytest
from ruamel.yaml import YAML

from flows import sweep, variants
from flows.environment import ROOT
from flows.graph import _values, read_inputs
from flows.outcome import StageFailedError
from flows.snapshot import visible_files
from flows.variants import Variant, clone, expand

pytestmark = pytest.mark.timeout(900)  # on a busy machine each dvc takes a minute to start


def test_losses_by_schedules():
    grid = {
        "pretrain.loss_impl,sft.loss_impl": ["guidelines", "dllm"],
        "pretrain.noise.schedule": ["uniform", "cosine"],
    }
    variants = expand(grid, "sweep")
    assert [v.name for v in variants] == [
        f"sweep-{a}-{b}" for a in ("guidelines", "dllm") for b in ("uniform", "cosine")
    ]
    assert variants[1].overrides == (
        "pretrain.loss_impl=guidelines",
        "sft.loss_impl=guidelines",
        "pretrain.noise.schedule=cosine",
    )


def test_the_default_sweep_has_every_loss():
    """The flows cannot read the registry, because they import nothing of the package."""
    from qwen3llada.diffusion.losses import LOSSES

    assert {"pretrain.loss_impl,sft.loss_impl": list(LOSSES)} == sweep.DEFAULT_GRID


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../..", "/tmp/x", "a/b", "a\0b", "-a", ".git", "a..b", "a.", "a.lock", "a b", "ü", "a" * 200],
)
def test_a_name_that_leads_out_of_the_folder_of_clones_is_refused(name):
    with pytest.raises(ValueError, match="must be 1 to 128 letters") as error:
        Variant(name, ())
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"name='../..-dllm' must be"):
        expand({"pretrain.loss_impl": ["dllm"]}, "../..")
    assert expand({"sft.optim.lr": ["0.1"]}, "lr-2.v_1")[0].name == "lr-2.v_1-0_1"


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["train.rate=0.3", "train.rate=0.4"], "--axis train.rate=0.4: train.rate is given twice"),
        (["a.rate,b.rate=1,2", "b.rate=3"], "must have each parameter once, given twice: b.rate"),
        (["train.rate=0.3,0.3"], "must give variants of different names, given twice: sweep-0_3"),
    ],
)
def test_what_is_given_twice_is_refused_before_a_server_starts(monkeypatch, capsys, axes, said):
    monkeypatch.setattr(sweep, "bind_server_to_this_process", lambda: pytest.fail("a server would start"))
    monkeypatch.setattr(sys, "argv", ["sweep", *(word for axis in axes for word in ("--axis", axis))])
    assert sweep.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_mistyped_stage_is_said_before_a_server_starts_or_a_clone_is_made(project, monkeypatch, capsys):
    said = "dvc.yaml: no stage 'trian'; there are prepare, train, measure"
    monkeypatch.setattr(sweep, "bind_server_to_this_process", lambda: pytest.fail("a server would start"))
    monkeypatch.setattr(sys, "argv", ["sweep", "--axis", "train.rate=0.5", "--stage", "trian"])
    assert sweep.main() == 2
    assert capsys.readouterr().err == f"error: {said}\n"
    monkeypatch.setattr(sweep, "clone", lambda *args: pytest.fail("a clone would be made"))
    state = sweep.sweep.fn({"train.rate": ["0.5"]}, ["trian"])  # as a deployment runs it
    assert (state.type.value, state.message) == ("FAILED", said)


def test_a_clone_is_the_workspace_byte_for_byte(project):
    """Changes, untracked files, links and line ends, with git's own conversion of line ends."""
    ends = b"lf\ncrlf\r\ncr\rend\x0b\x85\xe2\x80\xa8 \t\r\n"
    project.git("config", "core.autocrlf", "false")
    for name in ("stored.bat", "changed.bat"):
        (project.root / name).write_bytes(b"one\r\ntwo\n")
    project.git("add", "stored.bat", "changed.bat")
    project.git("commit", "-qm", "line ends")
    project.git("config", "core.autocrlf", "input")
    for name in ("changed.bat", "staged.txt", os.fsdecode(b"new\xff.txt"), "folder/new.txt"):
        (project.root / name).parent.mkdir(exist_ok=True)
        (project.root / name).write_bytes(ends)
    project.git("-c", "core.safecrlf=false", "add", "staged.txt")
    (project.root / "measure.py").unlink()
    (project.root / "prepare.py").chmod(0o755)
    (project.root / "link").symlink_to("folder")
    before = project.git("status", "--porcelain")

    path = clone(project.root, Variant("v", ("train.rate=0.5",)))
    names = visible_files(project.root)
    assert {"changed.bat", "staged.txt", "new\udcff.txt", "folder/new.txt", "stored.bat"} <= set(names)
    for name in set(names) - {"params.yaml", "link"}:
        assert (path / name).read_bytes() == (project.root / name).read_bytes(), name
    assert os.readlink(path / "link") == "folder"
    assert os.access(path / "prepare.py", os.X_OK)
    assert not (path / "measure.py").exists()
    assert "rate: 0.5" in (path / "params.yaml").read_text()
    assert "rate: 0.1" in (project.root / "params.yaml").read_text()
    assert "stored.bat" not in project.git("-C", str(path), "status", "--porcelain")
    assert project.git("status", "--porcelain") == before


def test_nothing_is_left_of_a_clone_that_cannot_be_made(project, monkeypatch):
    monkeypatch.setattr(variants, "_configure", lambda root, path: None)  # saves seconds of dvc
    with pytest.raises(StageFailedError, match=r"^stage parameters: 'train\.rate=\[1': the value is not valid YAML: "):
        clone(project.root, Variant("v", ("train.rate=[1",)))
    assert list(project.root.glob(".dvc/tmp/sweep/*")) == []


def test_a_variant_has_the_ignored_data_that_it_reads(project, monkeypatch):
    """Inputs given by a parameter and by a dependency. A clone is reused unless they have changed."""
    stages = (project.root / "dvc.yaml").read_text()
    (project.root / "dvc.yaml").write_text(stages.replace("deps: [prepare.py]", "deps: [prepare.py, work/words]"))
    data = project.root / "work/my/chat.jsonl"  # .gitignore has /work/
    data.parent.mkdir(parents=True)
    data.write_bytes(b"one\r\n")
    (project.root / "work/words").write_text("a b c")
    (project.root / "work/other").write_text("what nothing names")
    variant = Variant("v", ("prepare.source=work/my/chat.jsonl",))

    path = clone(project.root, variant)
    assert (path / "work/my/chat.jsonl").read_bytes() == b"one\r\n"
    assert (path / "work/words").read_text() == "a b c"
    assert not (path / "work/other").exists()
    assert not (path / "text.txt").exists()  # an output

    inputs = read_inputs(path)
    monkeypatch.setattr(variants, "read_inputs", lambda root: inputs)  # saves seconds of dvc
    monkeypatch.setattr(variants, "_configure", lambda root, path: None)
    (path / "checkpoint").touch()
    assert (clone(project.root, variant) / "checkpoint").exists()
    data.write_bytes(b"two\r\n")
    assert not (clone(project.root, variant) / "checkpoint").exists()
    assert (path / "work/my/chat.jsonl").read_bytes() == b"two\r\n"


def test_what_one_clone_cannot_have_is_refused_before_any_variant_runs(tmp_path, monkeypatch):
    def refuse(root, variant):
        if variant.name == "b":
            raise ValueError("params.yaml: data.name: given '../chat.jsonl', which leads out of the workspace")
        return tmp_path

    ran = []
    monkeypatch.setattr(sweep, "clone", refuse)
    monkeypatch.setattr(sweep, "_named", lambda variant: lambda *args: ran.append(args))
    with pytest.raises(ValueError, match="leads out of the workspace"):
        sweep._run([Variant("a", ()), Variant("b", ())], [], 1)
    assert ran == []


def test_the_sources_of_the_data_are_declared():
    """Every parameter of a model or data source that can be a path is in `meta.flow.reads` of its stage."""
    reads = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["download"]["meta"]["flow"]["reads"]
    keys = [f"{section}.{key}" for section in ("pretrain_data", "sft_data") for key in ("name", "heldout_name")]
    mixtures = ["pretrain_data.mixture.name", "sft_data.mixture.name"]
    assert sorted(reads) == sorted(["model.source", *keys, *mixtures])
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    assert {value for key in reads for value in _values(params, key.split("."))} == {"builtin"}


def test_a_parameter_of_a_list_of_sections_is_read_in_each():
    tree = {"data": {"mixture": [{"name": "a"}, {"name": "b"}], "name": None}}
    assert _values(tree, ["data", "mixture", "name"]) == ["a", "b"]
    assert _values(tree, ["data", "name"]) == []
    with pytest.raises(KeyError):
        _values(tree, ["data", "names"])
