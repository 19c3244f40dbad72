"""Variants of a sweep, and the clones in which they run."""

import os

import pytest

from flows.variants import Variant, clone, expand

pytestmark = pytest.mark.timeout(900)  # where the machine is busy, each dvc takes a minute to start


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


def test_a_clone_has_changes_untracked_files_and_links(project):
    (project.root / "train.py").write_text("changed\n")
    (project.root / "folder").mkdir()
    (project.root / "folder/new.txt").write_text("new\n")
    (project.root / "link").symlink_to("folder")
    path = clone(project.root, Variant("v", ("train.rate=0.5",)))
    assert (path / "train.py").read_text() == "changed\n"
    assert (path / "folder/new.txt").read_text() == "new\n"
    assert os.readlink(path / "link") == "folder"
    assert "rate: 0.5" in (path / "params.yaml").read_text()
    assert "rate: 0.1" in (project.root / "params.yaml").read_text()
