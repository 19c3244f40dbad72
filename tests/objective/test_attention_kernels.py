"""FlashAttention-4: refused by name where it cannot run, and passes that it does not compute are counted."""

import importlib.util
import logging
from dataclasses import replace

import pytest
import torch

from qwen3llada.errors import InputError
from qwen3llada.objective.attention_kernels import check_flash_attention_4, resolve_implementation
from qwen3llada.objective.params import KernelParams
from tests.objective.objective_steps import make_model
from tests.objective.test_copies import batch_of, loss_of, settings_of

ASKED = {"implementation": "flash_attention_4", "policy": "block_causal", "block_length": 4}
GPU = torch.device("cuda", 0)


@pytest.fixture
def hopper(monkeypatch):
    """A machine with an H100 and the package."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def check(device=GPU, attention=ASKED, **changes):
    given = {"bf16": True, "compiled": True, "deterministic": False} | changes
    check_flash_attention_4(KernelParams(**attention), device, **given)


def test_runs_on_hopper(hopper):
    check()
    check(attention=ASKED | {"policy": "alternate:block_causal,window"})
    check(attention=ASKED | {"policy": "full"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": torch.device("cpu")}, "needs a CUDA device, the model would be on cpu"),
        ({"bf16": False}, "needs bf16=true, .* given bf16=False"),
        ({"deterministic": True}, "needs .*deterministic=false.* given .*deterministic=True"),
        ({"compiled": False}, "needs .* compiled layers, given .*compiled=False"),
        (
            {"attention": ASKED | {"policy": "alternate:full,block"}},
            "computes policies full, block_causal, window, not block",
        ),
    ],
)
def test_refused_for_what_it_cannot_do(hopper, changes, reason):
    with pytest.raises(InputError, match=f"^attention.implementation=flash_attention_4 {reason}"):
        check(**changes)


def test_refused_on_another_card(hopper, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(InputError, match=r"needs an H100 or H200 \(compute capability 9.0\), this GPU has 8.0"):
        check()


@pytest.mark.parametrize("parent", [True, False])
def test_refused_without_the_package(hopper, monkeypatch, parent):
    """Also where another package has the same parent."""

    def find(name):
        if not parent:
            raise ModuleNotFoundError("No module named 'flash_attn'")

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(InputError, match=r"needs flash-attn-4, which is not installed: pip install '.\[flash\]'"):
        check()


def test_others_are_not_checked():
    check(torch.device("cpu"), {"implementation": "auto", "policy": "full"}, bf16=False)


def test_the_model_runs_flex_attention():
    assert resolve_implementation(KernelParams(**ASKED), GPU) == "flex_attention"


@pytest.mark.parametrize(("task", "passes"), [("pretraining", 3), ("sft", 3), ("even", 0)])
def test_passes_with_padding_or_prompts_are_counted(task, passes, caplog):
    """And logged once. `even`: rows without padding."""
    settings = settings_of("pretraining" if task == "even" else task, "block_causal", 4, random_length_prob=0.0)
    attention = settings.attention.model_copy(update={"implementation": "flash_attention_4"})
    model, batch = make_model(), batch_of(task, settings)
    if task == "even":
        batch = replace(batch, valid=torch.ones_like(batch.valid), padded=False)
    loss = replace(loss_of(settings, model, implementation="flex_attention"), attention=attention)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            loss.attention_mask(loss.prepare(batch))
    assert loss.fall_backs.passes == passes
    assert caplog.text.count("computes masks that are the same for all rows; flex_attention") == min(passes, 1)
