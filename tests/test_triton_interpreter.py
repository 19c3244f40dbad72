"""The Triton kernels of training and sampling in Triton's interpreter, all in one process: Triton decides at import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
TESTS = Path(__file__).parent
CODE = """
import gc, os, sys
from pathlib import Path
gc.disable()  # imports leave no garbage, and the kernels little
import triton.language as tl
from triton.runtime import interpreter

patch = interpreter._patch_lang


def patch_once(function):
    # Triton does it again for each function that a kernel calls, which takes a fifth of the time and changes nothing.
    used = [lang for lang in (tl, tl.core) if any(value is lang for value in function.__globals__.values())]
    return patch(function) if any(tl.core.is_builtin(lang.load) for lang in used) else interpreter._LangPatchScope()


interpreter._patch_lang = patch_once

import test_attention_kernel, test_graphs, test_head_kernels, test_layer_kernels, test_rotary_kernels
import test_products, test_rotated_attention, test_running_graphs, test_softmax_gradient_kernel

test_rotary_kernels.interpret()
checked = test_attention_kernel, test_rotated_attention, test_products, test_head_kernels, test_softmax_gradient_kernel
for module in checked:
    for check in module.CHECKS:
        check("cpu")
test_layer_kernels.compare_stored("cpu")
test_graphs.interpret(Path(sys.argv[1]))
test_running_graphs.interpret(Path(sys.argv[1]))
print("compared", flush=True)
os._exit(0)  # without taking apart what was imported
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="compared on the GPU itself")
def test_kernels_compute_what_plain_torch_does(tmp_path_factory):
    folders = [TESTS.parent, TESTS / "sampling", TESTS / "sampling/cuda", TESTS / "training/cuda", TESTS / "diffusion"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": ":".join(map(str, folders))}
    command = [sys.executable, "-c", CODE, tmp_path_factory.getbasetemp()]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert child.stdout == "compared\n", child.stderr
