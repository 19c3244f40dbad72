"""Tests that need a GPU run on machines that have the package's own dependencies and no more."""

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The extras `workflow`, `serve`, `trackers`, `harness` and `gpu`.
OPTIONAL = {"prefect", "dvc", "dvclive", "great_expectations", "pandas", "matplotlib", "sqlalchemy", "fastapi"}
OPTIONAL |= {"uvicorn"}
OPTIONAL |= {"bitsandbytes", "peft", "tensorboard", "wandb", "mlflow", "lm_eval"}
# Its class is one of lm-eval's; others import it within functions.
OF_AN_EXTRA = {"qwen3llada/evaluation/harness.py": {"lm_eval"}}
HERE = {*ROOT.joinpath("qwen3llada").rglob("*.py"), *ROOT.joinpath("stages").glob("*.py")}
TESTS = {path for path in ROOT.joinpath("tests").rglob("*.py") if path.parts[len(ROOT.parts) + 1] != "flows"}

PUT_ON_PATH = re.compile(r'sys.path.insert\(0, str\(Path\(__file__\).parents\[1\] / "([^"]+)"')

# A pytest plugin that hides some installed packages from Python's import system.
HIDE = """
import sys
from importlib.machinery import PathFinder
class Blind(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {hidden} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Blind
"""


def imported_at_once(tree: ast.AST) -> set[str]:
    """What importing a module imports, without functions, main programs and type checking."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and ast.unparse(node.test).startswith(("TYPE_CHECKING", "__name__")):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            names |= imported_at_once(node)
    return names


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    return frozenset(imported_at_once(ast.parse(path.read_text(encoding="utf-8"))))


def needed(path: Path, seen: set[Path]) -> set[str]:
    """The packages that a file needs when imported, also through modules of `flows`, some of which import Prefect."""
    seen.add(path)
    names = imports_of(path)
    ours = {ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("flows.")}
    found = {name.split(".")[0] for name in names}
    return found.union(*(needed(file, seen) for file in ours - seen if file.is_file()))


def test_no_extra_is_needed_to_import_a_module_or_to_collect_its_tests():
    for path in sorted(HERE | TESTS):
        name = path.relative_to(ROOT).as_posix()
        assert not (needed(path, set()) & OPTIONAL) - OF_AN_EXTRA.get(name, set()), name


def test_the_tests_of_flows_are_skipped_where_there_is_no_prefect(tmp_path):
    (tmp_path / "without_prefect.py").write_text(HIDE.format(hidden={"prefect"}))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    options = ("-p", "without_prefect", "-p", "no:cacheprovider", "--collect-only", "-q", "-rs")
    command = [sys.executable, "-m", "pytest", *options, "tests/flows"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stdout[-2000:]  # nothing was collected, and nothing failed
    assert "needs prefect, not installed (pip install .[workflow])" in done.stdout


def _text(path):
    return path.read_text(encoding="utf-8")


def test_a_file_of_tests_can_be_run_alone():
    """Its helpers are in its folder or in one with a conftest.py above it: pytest puts only these on the path.

    A file or a conftest.py above it may put another folder of the tests on the path itself.
    """
    helpers = {file.stem: file.parent for file in TESTS if file.stem != "conftest"}
    for path in sorted(TESTS):
        above = [folder for folder in path.parents if folder.is_relative_to(ROOT / "tests")]
        on_path = {path.parent, *(folder for folder in above if (folder / "conftest.py").is_file())}
        own = [path, *(file for folder in above if (file := folder / "conftest.py").is_file())]
        put = PUT_ON_PATH.findall("".join(map(_text, own)))
        on_path |= {ROOT / "tests" / folder for folder in put}
        used = imports_of(path) & helpers.keys()
        assert not {name for name in used if helpers[name] not in on_path}, path


def test_extras_are_installed_from_the_folder_and_the_readme_names_each():
    texts = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", *HERE]
    from_an_index = [path for path in texts if re.search(r"qwen3llada\[\w+\]", path.read_text(encoding="utf-8"))]
    assert from_an_index == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    listed = re.search(r"The extras are ([^:]+):", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert listed
    assert set(re.findall(r"`(\w+)`", listed[1])) == set(extras)
