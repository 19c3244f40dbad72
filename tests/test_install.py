"""`pip install` of the project gives the package with its data files, which can sample elsewhere."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM, __version__, generate, load
from qwen3llada.corpus.builtin.model import write_tokenizer

ROOT = Path(__file__).parents[1]
CODE = ("qwen3llada", "stages", "flows", "tests", "bench", "docs")
FILES = ("pyproject.toml", "README.md", "LICENSE", "params.yaml", "dvc.yaml")

ELSEWHERE = """
import gc, os, sys
gc.disable()  # imports leave no garbage
import qwen3llada
assert not {"torch", "transformers"} & sys.modules.keys()
from qwen3llada import generate, load
from qwen3llada.sampling.trace.page import page_templates
print(qwen3llada.__version__)
print(qwen3llada.__file__)
model = load(sys.argv[1], device="cpu")
print(repr(generate(model, "hello", steps=4, gen_length=8).text))
assert page_templates().get_template("trace.html.jinja")
sys.stdout.flush()
os._exit(0)  # without taking apart what was imported
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained model: its answers depend on random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tokenizer(folder, ["the quick brown fox jumps over the lazy dog", "hello world " * 3], bpe_tokens=270)
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 1}
    sizes = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
    config = Qwen3LLadaConfig(**sizes, **heads, mask_token_id=300, block_length=4, initializer_range=0.5)
    Qwen3LLadaForMaskedLM(config).save_pretrained(folder)
    return folder


def run(*command: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_wheel_has_the_package_alone_and_samples_in_an_environment_of_its_own(checkpoint, tmp_path):
    """The environment has the installed dependencies, and of the project only the wheel's content."""
    source = tmp_path / "source"  # setuptools writes into the tree that it builds from
    for name in CODE:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    built = run(
        *(sys.executable, "-c", "from setuptools import build_meta; print(build_meta.build_wheel('.'))"), cwd=source
    )
    wheel = source / built.split()[-1]
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/")}
    package = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "qwen3llada").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert any(name.endswith(".jinja") for name in package)
    assert {name for name in inside if ".dist-info/" not in name} == package

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    with zipfile.ZipFile(wheel) as archive:  # installing a wheel without scripts is only unpacking it
        archive.extractall(site)
    version, file, text = run(python, "-c", ELSEWHERE, checkpoint, cwd=tmp_path).splitlines()
    assert version == __version__
    assert Path(file) == site / "qwen3llada/__init__.py"
    answer = generate(load(checkpoint, device="cpu"), "hello", steps=4, gen_length=8)
    assert answer.text
    assert text == repr(answer.text)
