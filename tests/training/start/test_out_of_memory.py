"""An out-of-memory error names the knobs that save memory."""

from types import SimpleNamespace

import pytest
import torch
from runs import changed

from qwen3llada.training.loop import train
from qwen3llada.training.start import model_and_processes as setup
from qwen3llada.training.start import start as starting
from qwen3llada.training.start.out_of_memory import OutOfDeviceMemoryError, advice, explain_out_of_memory


def test_out_of_memory_names_the_knobs_that_are_left(pretraining):
    message = (
        "out of memory; try, in this order: micro_batch_size=1 with gradient_accumulation_steps=4 .*never.*bf16=true"
    )
    with pytest.raises(OutOfDeviceMemoryError, match=message), explain_out_of_memory(pretraining):
        raise torch.OutOfMemoryError("CUDA out of memory")
    wide = changed(pretraining, micro_batch_size=12, gradient_accumulation_steps=2)
    message = r"order: micro_batch_size=4 with gradient_accumulation_steps=6 \(the same training, by the estimate the"
    with pytest.raises(OutOfDeviceMemoryError, match=message), explain_out_of_memory(wide, largest=5):
        raise torch.OutOfMemoryError("CUDA out of memory")
    turned = SimpleNamespace(
        micro_batch_size=1,
        gradient_accumulation_steps=4,
        gradient_checkpointing=True,
        cuda_graphs="auto",
        bf16=True,
        fp16=False,
        optim=SimpleNamespace(name="adamw8bit"),
        adapter=SimpleNamespace(method="lora"),
    )
    assert advice(turned) == (
        "try, in this order: adapter.method=qlora (4-bit base weights; not under FSDP2);"
        " more GPUs with launch/fsdp2.yaml and optim.name=adamw"
    )


@pytest.mark.parametrize(
    ("changes", "ways"),
    [
        ({}, "param_dtype=bfloat16 with bf16=true .*; adapter.method=qlora .*; more GPUs with launch/fsdp2.yaml$"),
        (
            {"adapter": {"method": "qlora"}, "bf16": True, "optim": {"name": "lion8bit"}},
            "order: more GPUs with launch/fsdp2.yaml and optim.name=adamw and adapter.method=lora$",
        ),
    ],
)
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")]
)
def test_out_of_memory_while_loading_names_what_makes_the_model_smaller(pretraining, monkeypatch, changes, ways, error):
    def load_model(*_):
        raise error

    monkeypatch.setattr(starting, "load_model", load_model)
    monkeypatch.setattr(setup, "check_adapters", lambda *_: None)  # QLoRA's device
    with pytest.raises(OutOfDeviceMemoryError, match=f"out of memory while the model is loaded; .*{ways}"):
        train(changed(pretraining, **changes), seed=1)


def test_other_errors_stay_what_they_are(pretraining):
    with pytest.raises(RuntimeError, match=r"^another$"), explain_out_of_memory(pretraining):
        raise RuntimeError("another")
