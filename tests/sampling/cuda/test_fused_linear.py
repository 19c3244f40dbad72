"""Fused matrix products against the kernels and products that they replace: in the interpreter, and on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]
EPS = 1e-6


def compare_gate_up(device, dtype=torch.float32, sizes=((5, 64, 64), (70, 128, 64))):
    from qwen3llada.sampling.cuda.fused_linear import norm_gate_up

    for tokens, hidden, inner in sizes:
        x, norm, weight = random_tensors(tokens, [(tokens, hidden), (hidden,), (2 * inner, hidden)], dtype, device)
        weight = weight / hidden**0.5
        found = norm_gate_up(x, norm, weight, EPS)
        normed = torch.nn.functional.rms_norm(x.double(), (hidden,), norm.double(), EPS)
        gate, up = (normed @ weight.double().T).chunk(2, 1)
        close(found, torch.nn.functional.silu(gate) * up)


def compare_add(device, dtype=torch.float32, sizes=((5, 64, 128), (70, 32, 64))):
    from qwen3llada.sampling.cuda.fused_linear import add_linear

    for tokens, hidden, depth in sizes:
        x, a, weight = random_tensors(tokens, [(tokens, hidden), (tokens, depth), (hidden, depth)], dtype, device)
        expected = x.double() + a.double() @ weight.double().T
        add_linear(x, a, weight)
        close(x, expected)


def compare_qkv(device, dtype=torch.float32, sizes=((6, 64, 32), (40, 64, 32))):
    from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

    from qwen3llada.sampling.cuda.fused_linear import norm_qkv_rope
    from qwen3llada.sampling.cuda.layer_kernels import Angles, Heads, Store

    for tokens, hidden, size in sizes:
        heads, half = Heads(4, 2, size), size // 2
        shapes = [(tokens, hidden), (hidden,), (8 * size, hidden), (8 * size,), (size,), (size,)]
        x, norm, weight, bias, q_norm, k_norm = random_tensors(tokens, shapes, dtype, device)
        weight = weight / hidden**0.5
        positions = torch.randint(0, 50, (tokens,), generator=torch.Generator().manual_seed(0)).int().to(device)
        angles = torch.randn(50, half, generator=torch.Generator().manual_seed(1)).to(device)
        for biased, stores in ((None, False), (bias, True)):
            store = None
            if stores:  # units of 2 tokens, of which the first is stored
                keys, values = (torch.full((4, 5, 2, size), 9.0, dtype=dtype, device=device) for _ in range(2))
                rows = (torch.arange(tokens // 2) % 3).to(device)
                store = Store(keys, values, rows, torch.tensor([3], device=device))
            tables = Angles(angles.cos(), angles.sin())
            qk, qkv = norm_qkv_rope(x, norm, weight, biased, q_norm, k_norm, positions, tables, EPS, heads, store)
            wide = torch.nn.functional.rms_norm(x.double(), (hidden,), norm.double(), EPS) @ weight.double().T
            if biased is not None:
                wide += biased.double()
            q, k, v = wide.to(dtype).double().unflatten(1, (-1, size)).split([4, 2, 2], 1)
            q, k = (
                torch.nn.functional.rms_norm(part, (size,), w.double(), EPS) for part, w in ((q, q_norm), (k, k_norm))
            )
            cos, sin = (torch.cat([t[positions.long()].double()] * 2, -1)[None] for t in tables)
            q, k = (x[0] for x in apply_rotary_pos_emb(q[None], k[None], cos, sin, unsqueeze_dim=2))
            close(qk, torch.cat([q, k], 1).flatten(1))
            close(qkv[:, 6 * size :], v.flatten(1))
            if stores:
                last = {int(row): 2 * unit for unit, row in enumerate(rows.tolist())}
                same = all(torch.equal(k[last[r]], k[2 * u]) for u, r in enumerate(rows.tolist()))
                if same or tokens // 2 <= 3:  # several units may write one row
                    for row, token in last.items():
                        close(keys[row, 3], k[token])
                        close(values[row, 3], v[token])
                assert (keys[:, :3] == 9).all()
                assert (values[3] == 9).all()


CHECKS = [compare_gate_up, compare_add, compare_qkv]


def random_tensors(seed, shapes, dtype, device):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes]


def close(found, expected):
    tolerance = 1e-5 if found.dtype == torch.float32 else 2e-2
    difference = (found.double() - expected).norm() / expected.norm()
    assert difference < tolerance, difference


def compare_on_the_card():
    for dtype in (torch.float32, torch.bfloat16):
        compare_gate_up("cuda", dtype, ((1, 1024, 3072), (32, 1024, 3072), (100, 1024, 3072), (256, 1024, 3072)))
        compare_add("cuda", dtype, ((1, 1024, 3072), (32, 1024, 2048), (100, 1024, 3072), (256, 1024, 3072)))
        compare_qkv("cuda", dtype, ((6, 1024, 128), (32, 1024, 128), (256, 1024, 64)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="compared on the GPU itself")
def test_fused_products_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    code = "import test_fused_linear as t; [check('cpu') for check in t.CHECKS]; print('compared')"
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert child.stdout == "compared\n", child.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_products_on_a_gpu():
    compare_on_the_card()
