"""An error of one line for a device that is out of memory, with the knobs that save some."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qwen3llada.errors import InputError
from qwen3llada.training.run_params import RunParams
from qwen3llada.training.start.optimizers import OPTIMIZERS

QLORA = "adapter.method=qlora (4-bit base weights; not under FSDP2)"


class OutOfDeviceMemoryError(InputError):
    """The device is out of memory. The one-line message names the knobs that save memory."""


@contextmanager
def explain_out_of_memory(params: RunParams, *, loading: bool = False, largest: int | None = None) -> Iterator[None]:
    """Turn an out-of-memory error into one line that names the knobs to change, cheapest first.

    loading: the error arose while loading and preparing the model, before the first batch.
    largest: rows of the largest micro-batch that fits by the estimate, if that is known.
    """
    try:
        yield
    except RuntimeError as error:  # torch's allocator has an error class; errors from CUDA and bitsandbytes are plain
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        where = " while the model is loaded" if loading else ""
        ways = loading_advice(params) if loading else advice(params, largest)
        raise OutOfDeviceMemoryError(f"the device is out of memory{where}; {ways}") from error


def advice(params: RunParams, largest: int | None = None) -> str:
    """Unused knobs that save memory in a step, cheapest first. `largest`: as in `explain_out_of_memory`."""
    ways = []
    if params.micro_batch_size > 1:
        half = params.micro_batch_size // 2
        known = largest is not None and 0 < largest < params.micro_batch_size
        rows = params.smaller_micro_batch(largest if known and largest is not None else half)
        ways.append(f"{rows} (the same training{', by the estimate the largest that fits' if known else ''})")
    if not params.gradient_checkpointing and params.cuda_graphs == "auto":
        ways.append("cuda_graphs=never (slower with small batches)")
    if not params.gradient_checkpointing:
        ways.append("gradient_checkpointing=true (about a third slower)")
    if not (params.bf16 or params.fp16):
        ways.append("bf16=true")
    if params.optim.name == "adamw":
        ways.append("optim.name=adamw8bit (not under FSDP2)")
    if params.adapter.method == "none":
        ways.append("adapter.method=lora")
    elif params.adapter.method == "lora":
        ways.append(QLORA)
    return "try, in this order: " + "; ".join([*ways, _more_gpus(params)])


def loading_advice(params: RunParams) -> str:
    """Unused knobs that make the model itself smaller on each device."""
    ways = []
    if params.param_dtype == "float32" and params.adapter.method != "qlora":
        ways.append("param_dtype=bfloat16 with bf16=true (rounds small updates)")
    if params.adapter.method != "qlora":
        ways.append(QLORA)
    return "try, in this order: " + "; ".join([*ways, _more_gpus(params)])


def _more_gpus(params: RunParams) -> str:
    """FSDP2, and the knobs that must change with it."""
    changes = ["optim.name=adamw"] if OPTIMIZERS[params.optim.name].bitsandbytes else []
    changes += ["adapter.method=lora"] if params.adapter.method == "qlora" else []
    return "more GPUs with launch/fsdp2.yaml" + (f" and {' and '.join(changes)}" if changes else "")
