"""Trained models from their folders, for evaluation and sampling: whole ones, and adapters beside their base."""

from pathlib import Path
from typing import Any

from qwen3llada.artifacts import read_json
from qwen3llada.errors import InputError

ADAPTER_CONFIG = "adapter_config.json"
WHOLE = ("model.safetensors", "model.safetensors.index.json")


def load_pretrained(folder: Path, **options: Any) -> Any:
    """The Qwen3LLadaForMaskedLM of `folder`; adapters alone are added to the weights of the base that they name.

    `options`: of `from_pretrained` (dtype, attn_implementation).
    Raises: InputError if `folder` holds no model, or if the base of its adapters is not there.
    """
    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no model: config.json is missing")
    if not is_adapters_alone(folder):
        return Qwen3LLadaForMaskedLM.from_pretrained(folder, trust_remote_code=False, **options)
    base = Path(str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")))
    if not (base / "config.json").is_file():
        raise InputError(f"{folder}: adapters for the model {base}, which is not there; {ADAPTER_CONFIG} names it")
    # What the sampler must know of the training (attention, template) is in the config beside the adapters.
    return merged(base, folder, config=Qwen3LLadaConfig.from_pretrained(folder, trust_remote_code=False), **options)


def is_adapters_alone(folder: Path) -> bool:
    """Whether `folder` holds adapters (adapter.merge=false) and no whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and not any((folder / name).is_file() for name in WHOLE)


def merged(model_folder: Path, adapter_folder: Path, **options: Any) -> Any:
    """The model of `model_folder`, unquantised, with the adapters of `adapter_folder` added to its weights.

    `options`: of `from_pretrained`. Raises: InputError if peft is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError(f"{adapter_folder}: adapters need peft, which is not installed") from error

    from qwen3llada import Qwen3LLadaForMaskedLM

    base = Qwen3LLadaForMaskedLM.from_pretrained(model_folder, trust_remote_code=False, **options)
    return PeftModel.from_pretrained(base, adapter_folder).merge_and_unload()
