"""How much device memory a run takes, told before it starts, and what to do when there is not enough."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qwen3llada.training.params import TrainParams


class OutOfDeviceMemoryError(ValueError):
    """The device is out of memory. One line with the knobs that save memory."""


@contextmanager
def explain_out_of_memory(params: TrainParams) -> Iterator[None]:
    """Turn the device's out-of-memory error into one line that names the knobs to turn, the cheapest first."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfDeviceMemoryError(f"the device is out of memory; {advice(params)}") from error


def advice(params: TrainParams) -> str:
    """The knobs that save memory and are not turned yet, the cheapest first."""
    half = max(1, params.micro_batch_size // 2)
    doubled = params.gradient_accumulation_steps * 2
    ways = []
    if params.micro_batch_size > 1:
        ways.append(f"micro_batch_size={half} with gradient_accumulation_steps={doubled} (the same training)")
    if not params.gradient_checkpointing:
        ways.append("gradient_checkpointing=true (about a third slower)")
    if not (params.bf16 or params.fp16):
        ways.append("bf16=true")
    if params.optim.name == "adamw":
        ways.append("optim.name=adamw8bit")
    if params.adapter.method == "none":
        ways.append("adapter.method=lora")
    ways.append("more GPUs with launch/fsdp2.yaml")
    return "try, in this order: " + "; ".join(ways)
