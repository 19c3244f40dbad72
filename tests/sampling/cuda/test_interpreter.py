"""The sampler's kernels in Triton's interpreter, all in one process: Triton decides at import whether it interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
HERE = Path(__file__).parent
CODE = """
import test_attention_kernel, test_graphs, test_head_kernels

for check in (*test_attention_kernel.CHECKS, *test_head_kernels.CHECKS):
    check("cpu")
test_graphs.interpret()
print("compared")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="compared on the GPU itself")
def test_attention_the_head_and_a_whole_answer():
    places = [HERE.parents[2], HERE, HERE.parent]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": ":".join(map(str, places))}
    child = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=300)
    assert child.stdout == "compared\n", child.stderr
