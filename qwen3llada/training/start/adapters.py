"""LoRA and QLoRA through peft: a few added weights are trained, over base weights that stay as they are."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen3llada.errors import InputError
from qwen3llada.training.params import AdapterParams

ADAPTER_FOLDER = "adapter"


def check_adapters(params: AdapterParams, device: torch.device) -> None:
    """Raises InputError if what the method needs is not there."""
    needed = {"none": (), "lora": ("peft",), "qlora": ("peft", "bitsandbytes")}[params.method]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"adapter.method={params.method} needs {' and '.join(missing)}, which is not installed")
    if params.method == "qlora" and device.type != "cuda":
        raise InputError(f"adapter.method=qlora needs a CUDA device, the model would be on {device.type}")


def quantization(params: AdapterParams, compute_dtype: torch.dtype) -> Any:
    """How the base weights are stored under QLoRA: 4-bit normal floats, their scales quantised too; None otherwise.

    Dettmers et al., arXiv 2305.14314, sections 3 (NF4, double quantisation).
    """
    if params.method != "qlora":
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def add_adapters(model: nn.Module, params: AdapterParams, *, resume_from: Path | None, checkpointed: bool) -> Any:
    """Put adapters into the linear layers of `model`, in place, and freeze everything else.

    With `resume_from`, a folder that `save_pretrained` of the result wrote, the adapters are those stored there.
    Returns: the peft model around `model`, for saving and merging; None for method "none".
    Raises InputError if a target module is in no layer.
    """
    if params.method == "none":
        return None
    from peft import LoraConfig, PeftModel, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [name for name in params.target_modules if name not in names]
    if unknown:
        raise InputError(f"adapter.target_modules={unknown} must be linear layers of the model: {sorted(names)}")
    if resume_from is not None:
        wrapped = PeftModel.from_pretrained(model, resume_from, is_trainable=True)
    else:
        config = LoraConfig(
            r=params.rank,
            lora_alpha=params.alpha,
            lora_dropout=params.dropout,
            target_modules=list(params.target_modules),
        )
        wrapped = get_peft_model(model, config)
    if checkpointed:
        # The first layer's input needs a gradient, or nothing of the layer is computed again in the backward pass.
        model.enable_input_require_grads()  # type: ignore[operator]
    return wrapped


def save_adapters(adapted: Any, model: Any, folder: Path, *, base: Path, weights: Any) -> None:
    """Write the adapters of `adapted` alone, the config of `model` around them, and the folder of their base.

    `qwen3llada.modeling.loading.load_pretrained` makes a model of them again.
    """
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder, state_dict=weights)
    model.config.save_pretrained(folder)
