"""Imports point one way (see README, "where things are")."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the outermost layer to the innermost. A layer may import itself and those after it.
LAYERS = [
    "stages",
    "report",
    "serving",
    "post_training",
    "training",
    "evaluation",
    "sampling",
    "objective",
    "corpus",
    "batches",
    "modeling",
    "diffusion",
    "tracked",
    "knob_variables",
    "commandline",
    "folder_lock",
    "destinations",
    "artifacts",
    "section",
    "encodings",
    "errors",
]
MODULES = sorted(p for top in ("qwen3llada", "stages", "flows") for p in (ROOT / top).rglob("*.py"))
# Files that trust_remote_code copies beside a checkpoint. The package may not be installed there.
STANDALONE = {"configuration_qwen3llada", "modeling_qwen3llada", "custom_generate/generate"}
# Slow or heavy packages, absent on training machines. Only these places may import them.
CONFINED = {"great_expectations": {"qwen3llada/corpus/validation/expectations.py"}, "prefect": {"flows/"}}


@functools.cache
def imported(path: Path) -> set[str]:
    """Absolute names of everything that a module imports, at any depth; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(path.relative_to(ROOT).with_suffix("").parts[: -node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def layer(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] == "qwen3llada":
        return parts[1] if len(parts) > 1 and parts[1] in LAYERS else None
    return parts[0] if parts[0] in LAYERS else None


def test_imports_point_inwards():
    for path in MODULES:
        relative = path.relative_to(ROOT)
        own = layer(".".join(relative.with_suffix("").parts))
        used = imported(path)
        if relative.parts[0] == "flows":
            assert not {name for name in used if name.startswith(("qwen3llada", "stages"))}, relative
        if own is not None:
            outward = {n for n in used if (at := layer(n)) is not None and LAYERS.index(at) < LAYERS.index(own)}
            assert not outward, f"{relative} imports from an outer layer: {sorted(outward)}"
        if relative.parts[0] != "stages" and str(relative) != "qwen3llada/params.py":
            assert not {n for n in used if n.startswith("qwen3llada.params")}, relative


def test_every_part_of_the_package_has_a_layer():
    """Without one, its imports would be looked at by nobody. params.py composes the sections, for the stages alone."""
    package = ROOT / "qwen3llada"
    parts = {path.relative_to(package).parts[0].removesuffix(".py") for path in package.rglob("*.py")}
    assert parts - set(LAYERS) == {"__init__", "params"}


def test_no_two_modules_import_each_other():
    """At any depth: an import within a function makes a circle too."""
    own = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    edges = {name: {n for n in imported(path) if n in own and not name.startswith(n)} for name, path in own.items()}
    reached = {name: set(targets) for name, targets in edges.items()}
    grown = True
    while grown:
        grown = False
        for name, found in reached.items():
            more = found.union(*(reached[n] for n in found))
            grown |= more != found
            reached[name] = more
    assert not sorted(name for name, found in reached.items() if name in found)


def test_heavy_packages_are_confined():
    for path in MODULES:
        relative = str(path.relative_to(ROOT))
        tops = {name.split(".")[0] for name in imported(path)}
        for package, places in CONFINED.items():
            assert package not in tops or any(relative.startswith(place) for place in places), relative


@pytest.mark.parametrize("name", sorted(STANDALONE))
def test_remote_code_stands_alone(name):
    path = ROOT / "qwen3llada" / "modeling" / f"{name}.py"
    ours = {n for n in imported(path) if n.startswith("qwen3llada.modeling.")}
    others = {n.split(".")[0] for n in imported(path)} - {"qwen3llada"}
    assert all(n.split(".")[2] in STANDALONE for n in ours)  # beside it in a checkpoint
    assert others - sys.stdlib_module_names <= {"torch", "transformers"}


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=lambda p: p.stem)
def test_stages_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
