"""LoRA and QLoRA through peft: train a few added weights; the base weights are frozen."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwen3llada.errors import InputError
from qwen3llada.training.run_params import AdapterParams

ADAPTER_FOLDER = "adapter"


def check_adapters(params: AdapterParams, device: torch.device) -> None:
    """Raises InputError if a package or device that the method needs is missing."""
    needed = {"none": (), "lora": ("peft",), "qlora": ("peft", "bitsandbytes")}[params.method]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"adapter.method={params.method} needs {' and '.join(missing)}, which is not installed")
    if params.method == "qlora" and device.type != "cuda":
        raise InputError(f"adapter.method=qlora needs a CUDA device, the model would be on {device.type}")


def quantization(params: AdapterParams, compute_dtype: torch.dtype) -> Any:
    """Storage of the base weights under QLoRA: 4-bit NormalFloat with double quantisation. None for other methods.

    Dettmers et al., arXiv 2305.14314, section 3.
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
    """Add adapters to the linear layers of `model`, in place, and freeze all other weights.

    `resume_from`: a folder with saved adapters to load instead of new ones.
    Returns: the peft model around `model`, for saving and merging; None for method "none".
    Raises InputError if no linear layer but the output projection, whose weight the loss reads, has the name of a
    target module.
    """
    if params.method == "none":
        return None
    from peft import LoraConfig, PeftModel, get_peft_model

    head = model.get_output_embeddings()  # type: ignore[operator]
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    names = {name.rsplit(".", 1)[-1] for name in layers}
    unknown = [name for name in params.target_modules if name not in names]
    if unknown:
        raise InputError(
            f"adapter.target_modules={unknown} must be linear layers of the model before its output: {sorted(names)}"
        )
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
    own = wrapped.peft_config["default"]
    own.target_modules = sorted(own.target_modules)  # peft saves a set, in an order that differs from run to run
    if checkpointed:
        # Checkpointing recomputes a layer only if its input requires a gradient; without this the first one's does not.
        model.enable_input_require_grads()  # type: ignore[operator]
    return wrapped


def save_adapters(adapted: Any, model: Any, folder: Path, *, base: Path, weights: Any) -> None:
    """Write only the adapters of `adapted`, with the config of `model` and the folder of the base model.

    `qwen3llada.modeling.loading.load_pretrained` builds the model from them.
    """
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder, state_dict=weights)
    model.config.save_pretrained(folder)
