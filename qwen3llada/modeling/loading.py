"""A checkpoint of ours from its folder, with one line about whatever is wrong with its files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from qwen3llada.errors import InputError
from qwen3llada.modeling.qwen3_checkpoint import model_type


def load_checkpoint(folder: str | Path, **options: Any) -> Any:
    """The `Qwen3LLadaForMaskedLM` in `folder`; `options` are those of Transformers' `from_pretrained`.

    Raises: InputError if there is none, or its config or weights cannot be read or do not belong together. Transformers
    would draw random values for tensors that are missing or of another shape. torch.OutOfMemoryError stays as it is.
    """
    from qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder}: no model: config.json is missing")
    kind = model_type(Path(folder))
    if kind != Qwen3LLadaConfig.model_type:
        raise InputError(f"{folder}: is a {kind} checkpoint, but must be a {Qwen3LLadaConfig.model_type} one (convert)")
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with files_blamed(folder):
        model, info = Qwen3LLadaForMaskedLM.from_pretrained(folder, **options)
    wrong = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    wrong += [
        f"{name} has shape {list(is_)} instead of {list(must)}" for name, is_, must in sorted(info["mismatched_keys"])
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"{folder}: its weights are not those that config.json describes: {wrong[0]}{more}")
    return model


@contextmanager
def files_blamed(folder: str | Path) -> Iterator[None]:
    """Around a call of Transformers that reads `folder`: its errors about the files there become an InputError.

    It raises OSError for files that are missing or no JSON, StrictDataclassError, ValueError, KeyError and TypeError
    for values of a config, SafetensorError for weights, and RuntimeError for weights of another shape.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except (OSError, StrictDataclassError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder}: no model that can be loaded: {in_one_line(error)}") from error


def in_one_line(error: Exception) -> str:
    """What a library says, on one line; with the error's class where the text alone would be a mere name."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__} {text}" if isinstance(error, KeyError) or not text else text
