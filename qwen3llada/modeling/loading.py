"""Loading of our models from folders, complete or as adapters beside their base, with one-line errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import read_json
from qwen3llada.errors import InputError
from qwen3llada.modeling.qwen3_checkpoint import check_dtypes, model_type
from qwen3llada.modeling.shards import find_shards

ADAPTER_CONFIG = "adapter_config.json"
BAR_BYTES = 4 * 2**30  # takes about ten seconds to read from disk
WHOLE = ("model.safetensors", "model.safetensors.index.json")


def load_pretrained(folder: str | Path, **options: Any) -> Any:
    """The Qwen3LLadaForMaskedLM in `folder`. If the folder holds only adapters, they are merged into their base.

    `options`: for Transformers' `from_pretrained` (dtype, attn_implementation). Code in the folder is never run.
    Raises: InputError if there is no model, if the adapters' base is missing, or if config or weights are unreadable or
    do not fit together. (Transformers alone would initialise missing or misshapen tensors at random, leave out those
    that the config does not describe, and take the integers of quantised ones for weights.)
    torch.OutOfMemoryError passes through.
    """
    from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    folder = Path(folder)
    check_is_ours(folder)
    if is_adapters_alone(folder):
        base = Path(str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")))
        if not (base / "config.json").is_file():
            raise InputError(f"{folder}: adapters for the model {base}, which is not there; {ADAPTER_CONFIG} names it")
        # The config beside the adapters holds what the sampler needs to know about training (attention, template).
        with files_blamed(folder):
            config = Qwen3LLadaConfig.from_pretrained(folder, trust_remote_code=False)
        return merged(base, folder, config=config, **options)
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with files_blamed(folder), bar_for_large_weights(folder):
        if any((folder / name).is_file() for name in WHOLE):
            check_dtypes(find_shards(folder))
        model, info = Qwen3LLadaForMaskedLM.from_pretrained(folder, trust_remote_code=False, **options)
    _check_loaded(folder, info)
    return model


def check_is_ours(folder: Path) -> None:
    """Raises InputError unless `folder` holds a model or adapters of this project. Reads only config.json."""
    from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaConfig

    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no model: config.json is missing")
    kind = model_type(folder)
    if kind != Qwen3LLadaConfig.model_type:
        raise InputError(f"{folder}: is a {kind} checkpoint, but must be a {Qwen3LLadaConfig.model_type} one (convert)")


def is_adapters_alone(folder: Path) -> bool:
    """Whether `folder` holds adapters (adapter.merge=false) but no complete model."""
    return (folder / ADAPTER_CONFIG).is_file() and not any((folder / name).is_file() for name in WHOLE)


def merged(model_folder: Path, adapter_folder: Path, **options: Any) -> Any:
    """The model of `model_folder`, unquantised, with the adapters of `adapter_folder` merged into its weights.

    `options`: as in `load_pretrained`. Raises: InputError if peft is not installed, or as `load_pretrained`.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError(f"{adapter_folder}: adapters need peft, which is not installed") from error

    base = load_pretrained(model_folder, **options)
    with files_blamed(adapter_folder):
        return PeftModel.from_pretrained(base, adapter_folder).merge_and_unload()


@contextmanager
def bar_for_large_weights(folder: Path) -> Iterator[None]:
    """Show Transformers' progress bar only for weights that are large enough to take noticeable time."""
    from transformers.utils import logging

    small = sum(file.stat().st_size for file in folder.glob("*.safetensors")) < BAR_BYTES
    hide = small and logging.is_progress_bar_enabled()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


def _check_loaded(folder: Path, info: dict[str, Any]) -> None:
    wrong = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    wrong += [
        f"{name} has shape {list(is_)} instead of {list(must)}" for name, is_, must in sorted(info["mismatched_keys"])
    ]
    wrong += [f"{name} is not one of them" for name in sorted(info["unexpected_keys"])]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"{folder}: its weights are not those that config.json describes: {wrong[0]}{more}")


@contextmanager
def files_blamed(folder: str | Path) -> Iterator[None]:
    """Turn Transformers' errors about files in `folder` into an InputError.

    Transformers raises OSError for missing files or invalid JSON; StrictDataclassError, ValueError, KeyError and
    TypeError for config values; SafetensorError for weights; RuntimeError for weights of another shape.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except (OSError, StrictDataclassError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder}: no model that can be loaded: {in_one_line(error)}") from error


def in_one_line(error: Exception) -> str:
    """A library's error message on one line, with the error's class if the text alone says too little."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__} {text}" if isinstance(error, KeyError) or not text else text
