"""Imports at start-up: a parameter error needs no torch, and a first answer only packages that it calls."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = {
    *("torch", "transformers", "numpy", "pyarrow", "pandas", "scipy", "datasets", "accelerate", "huggingface_hub"),
    *("safetensors", "tokenizers", "jinja2", "rich", "tqdm"),
}


def imported_by(code: str) -> set[str]:
    """Names of the packages that a new Python has imported after `code`."""
    code += "\nimport sys; print('|'.join({name.split('.')[0] for name, m in sys.modules.items() if m}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.strip().splitlines()[-1].split("|"))


def test_parameters_need_no_heavy_package():
    """Every stage, its command line and its `--help`, and the check before `dvc repro`."""
    stages = ", ".join(f"stages.{path.stem}" for path in (ROOT / "stages").glob("[!_]*.py"))
    code = f"""
import {stages}
import qwen3llada.params
from qwen3llada.sampling.params import SampleRequest
qwen3llada.params.check()
for own in ("convert", "validation", "pretrain", "sft", "rl", "eval_loss", "sample", "report", "export", "serve"):
    try:
        qwen3llada.params.load_stage(["--help"], own=own, shared=("builtin", "model", "pretrain_data", "sft_data"))
    except SystemExit:
        pass
"""
    assert not imported_by(code) & HEAVY


def test_what_is_wrong_with_a_request_is_said_before_torch_is_imported(tmp_path):
    code = f"""
from pathlib import Path
from qwen3llada.errors import InputError
from qwen3llada.sampling.dialogue.ask import answer_request
from qwen3llada.sampling.params import SampleParams, SampleRequest
empty = Path({str(tmp_path)!r}, "empty.jsonl")
empty.touch()
try:
    answer_request(SampleRequest(prompts=empty), Path("out"), SampleParams(), seed=0)
except InputError as error:
    assert "no prompts" in str(error), error
else:
    raise AssertionError("an empty file was answered")
"""
    assert not imported_by(code) & HEAVY


def test_a_first_answer_imports_no_scipy_and_leaves_all_as_it_was():
    code = """
import gc, sys
from qwen3llada.sampling.lean_import import import_model_code
import_model_code()
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000 or "triton" in sys.modules, "the end looks for garbage in all of it"
assert not {"scipy", "triton", "accelerate"} & {name for name, module in sys.modules.items() if module is None}
from transformers import AutoModelForMaskedLM
from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
assert AutoModelForMaskedLM._model_mapping[Qwen3LLadaConfig] is Qwen3LLadaForMaskedLM
early = sys.modules.get("scipy")
import transformers.models
assert "transformers.models.bert" not in sys.modules
assert transformers.models.bert.BertConfig().model_type == "bert", "names are found as usual"
assert transformers.models.qwen3.Qwen3ForCausalLM in Qwen3LLadaForMaskedLM.__mro__
assert sys.modules["transformers.models"].qwen3 is transformers.models.qwen3
import scipy.optimize
assert early is None, "imported with the model's code"
assert scipy.optimize.linear_sum_assignment
"""
    assert "qwen3llada" in imported_by(code)


def test_what_cannot_do_without_a_hidden_package_is_imported_as_usual(monkeypatch, caplog):
    from qwen3llada.sampling import lean_import

    half, kept = "transformers.half", sys.modules["pytest"]

    def fail():
        sys.modules[half] = kept  # what a failed import leaves
        raise ImportError("no module named scipy")

    imported = []
    monkeypatch.setattr(lean_import, "_import_without_unneeded", fail)
    monkeypatch.setattr(
        lean_import.importlib, "import_module", lambda name: imported.append((name, half in sys.modules))
    )
    monkeypatch.setattr(lean_import.gc, "freeze", lambda: None)
    lean_import.import_model_code()
    assert imported == [("qwen3llada.modeling.modeling_qwen3llada", False)]
    assert caplog.messages == ["all packages are imported, which takes longer: no module named scipy"]


def test_an_end_at_once_loses_no_output():
    code = """
import atexit, sys
from qwen3llada.sampling.lean_import import end_at_once
atexit.register(print, "taken apart")
print("an answer", end="")
print("its cost", end="", file=sys.stderr)
end_at_once()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "an answer", "its cost")
