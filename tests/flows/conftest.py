"""A small real DVC project per test."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from flow_project import Project

import flows  # noqa: F401  telemetry off
from flows.environment import child_environment

SOURCE = Path(__file__).with_name("project")
MISSING = [name for name in ("prefect", "dvc") if find_spec(name) is None]


class NeedsTheWorkflow(pytest.Module):
    """Skips a test file instead of importing it if Prefect or DVC is missing, because flows import them at once."""

    def collect(self):
        pytest.skip(f"needs {' and '.join(MISSING)}, not installed (pip install .[workflow])")


def pytest_pycollect_makemodule(module_path, parent):
    return NeedsTheWorkflow.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pristine") / "project"
    shutil.copytree(SOURCE, root)
    # Under another name in this repository, because DVC treats every dvc.yaml below its root as part of the project.
    (root / "stages.yaml").rename(root / "dvc.yaml")
    (root / ".gitignore").write_text("/work/\n/text.txt\n/model.txt\n/metrics.json\n/reports/\n__pycache__/\n")
    (root / ".dvc").mkdir()  # as `dvc init` does, which takes half a second
    (root / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (root / ".dvc/config").write_text("[core]\n    check_update = false\n")
    (root / ".dvcignore").touch()
    commands = (
        "git init -q",
        "git config user.email test@example.org",
        "git config user.name test",
        "git add -A",
        "git commit -qm start",
        f"{sys.executable} -m dvc repro -q --single-item prepare",
    )
    for command in commands:
        subprocess.run(command.split(), cwd=root, check=True, env=child_environment())
    return root


@pytest.fixture
def project(pristine, tmp_path, monkeypatch) -> Iterator[Project]:
    root = tmp_path / "project"
    shutil.copytree(pristine, root)
    monkeypatch.chdir(root)
    made = Project(root)
    yield made
    for process in made.processes():
        process.kill()
