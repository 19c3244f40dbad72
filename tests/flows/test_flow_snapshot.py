"""The files that a sweep's clone gets, on small git repositories."""

import os
import subprocess
import sys

import pytest

from flows.environment import child_environment
from flows.snapshot import copy_files, hidden_files, visible_files

HIDDEN = "data/my/chat.jsonl"  # .gitignore has /data/


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "workspace"
    (root / "data/my").mkdir(parents=True)
    git(root, "init", "-q")
    (root / ".gitignore").write_text("/data/\n")
    (root / HIDDEN).write_bytes(b"ignored\r\n")
    (root / "data/other").write_text("what no parameter names")
    return root


def git(root, *command):
    subprocess.run(["git", *command], cwd=root, check=True, capture_output=True)


@pytest.mark.parametrize(
    "given", [HIDDEN, f"./data/../{HIDDEN}", "data/my", "data/my/", "data/*/chat.js*", "data/**/*l"]
)
def test_ignored_data_that_is_read_is_found(root, given):
    assert hidden_files(root, [("params.yaml: a.b", given)], visible_files(root)) == [HIDDEN]


@pytest.mark.parametrize("given", ["builtin", "some/dataset", "/data/my/chat.jsonl", "~/chat.jsonl", ".gitignore", ""])
def test_what_is_no_ignored_file_is_passed_over(root, given):
    assert hidden_files(root, [("params.yaml: a.b", given)], visible_files(root)) == []


@pytest.mark.parametrize("given", ["../chat.jsonl", "data/../../chat.jsonl", "../*.jsonl", "..", ".", "./data/.."])
def test_a_path_out_of_the_workspace_is_refused(root, given):
    (root.parent / "chat.jsonl").write_text("beside the workspace")
    with pytest.raises(ValueError, match=rf"^params\.yaml: a\.b: given '{given.replace('*', '.')}', .*must be"):
        hidden_files(root, [("params.yaml: a.b", given)], [])


def test_links_in_ignored_data_become_what_they_lead_to(root, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/blob").write_text("stored elsewhere")
    (root / "data/my/linked.jsonl").symlink_to(tmp_path / "store/blob")
    (root / "data/my/store").symlink_to("../../../store")
    (root / "data/my/loop").symlink_to(".")
    (root / "data/my/broken").symlink_to("nowhere")
    names = hidden_files(root, [("", "data/my")], [])
    assert names == [HIDDEN, "data/my/linked.jsonl", "data/my/store/blob"]
    copy_files(root, names, tmp_path / "copy", links=False)
    assert not (tmp_path / "copy/data/my/linked.jsonl").is_symlink()
    assert (tmp_path / "copy/data/my/store/blob").read_text() == "stored elsewhere"


def test_data_behind_a_link_that_a_clone_would_not_have_is_refused(root, tmp_path):
    (root / "link").symlink_to("data/my")
    copy_files(root, visible_files(root), tmp_path / "copy", links=True)
    names = hidden_files(root, [("", "link/chat.jsonl")], visible_files(root))
    with pytest.raises(ValueError, match=r"^link/chat\.jsonl: lies behind a link"):
        copy_files(root, names, tmp_path / "copy", links=False)


def test_a_link_out_of_the_workspace_is_refused(root):
    (root.parent / "beside").mkdir()
    (root / "beside").symlink_to("../beside")
    with pytest.raises(ValueError, match=r"^beside: a link to \.\./beside, out of the workspace"):
        visible_files(root)
    (root / "beside").unlink()
    (root / "beside").symlink_to(root.parent / "beside")  # an absolute link leads to the same place from a clone
    assert "beside" in visible_files(root)


def test_a_repository_in_the_workspace_is_refused(root):
    (root / "inner").mkdir()
    git(root / "inner", "init", "-q")
    (root / "inner/file").touch()
    with pytest.raises(ValueError, match=r"^inner/ is a git repository inside this one"):
        visible_files(root)


def test_large_files_are_never_in_memory_as_a_whole(root):
    """Changed, untracked and ignored ones of 64 MB each, with 48 MB of memory above what the process has."""
    (root / "tracked").write_bytes(os.urandom(1000))
    git(root, "add", "tracked")
    for name in ("tracked", "untracked", "data/ignored"):
        with open(root / name, "wb") as file:
            file.truncate(64_000_000)
    code = """
import resource
from pathlib import Path
from flows import snapshot
used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (used + 48_000_000, resource.RLIM_INFINITY))
visible = snapshot.visible_files(Path())
hidden = snapshot.hidden_files(Path(), [("", "data/ignored")], visible)
assert {"tracked", "untracked"} <= set(visible) and hidden == ["data/ignored"]
for names, links in ((visible, True), (hidden, False)):
    snapshot.digests(Path(), names, links=links)
    snapshot.copy_files(Path(), names, Path("data/copy"), links=links)
"""
    subprocess.run([sys.executable, "-c", code], cwd=root, env=child_environment(), check=True)
