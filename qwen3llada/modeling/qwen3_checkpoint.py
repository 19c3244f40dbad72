"""Checks that a folder holds a complete Qwen3 checkpoint that can be converted."""

from pathlib import Path
from typing import TYPE_CHECKING

from qwen3llada.artifacts import read_json
from qwen3llada.errors import InputError
from qwen3llada.modeling.shards import Shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Qwen3Config

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
#: Dtypes of plain weights, by safetensors' names. Qwen3 stores no integer buffers.
PLAIN_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def model_type(folder: Path) -> str | None:
    """The model type in `config.json`. Raises FileNotFoundError if the folder or the file is missing."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; it must hold a checkpoint")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: has no config.json, so it is not a checkpoint")
    values = read_json(folder / "config.json")
    return values.get("model_type") if isinstance(values, dict) else None


def read_qwen3_config(folder: Path) -> "Qwen3Config":
    """The configuration of a Qwen3 checkpoint.

    Raises: FileNotFoundError if there is no checkpoint; InputError naming a model of another kind, or a quantised one.
    """
    from transformers import Qwen3Config

    kind = model_type(folder)
    values = read_json(folder / "config.json")
    if kind != Qwen3Config.model_type:
        architectures = ", ".join(values.get("architectures") or ()) if isinstance(values, dict) else ""
        named = f"{kind} checkpoint ({architectures})" if architectures else f"{kind} checkpoint"
        raise InputError(f"{folder}: is a {named}, but must be a {Qwen3Config.model_type} checkpoint (dense Qwen3)")
    if values.get("quantization_config"):
        raise InputError(f"{folder}: is quantised (quantization_config in config.json), but must have plain weights")
    try:
        return Qwen3Config.from_dict(values)
    except Exception as error:  # Transformers' validation raises several unrelated exceptions
        raise InputError(f"{folder / 'config.json'}: {' '.join(str(error).split())}") from error


def check_tensors(shards: Shards, model_class: type["PreTrainedModel"], config: "Qwen3Config") -> None:
    """Raises InputError unless the files hold exactly the tensors of the model, in their shapes."""
    import torch

    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in model_class(config).state_dict().items()}
    if config.tie_word_embeddings and HEAD not in shards.tensors:
        del expected[HEAD]
    given = {name: tensor.shape for name, tensor in shards.tensors.items()}
    wrong = [f"{name} is missing" for name in expected.keys() - given.keys()]
    wrong += [f"{name} is not one of them" for name in given.keys() - expected.keys()]
    wrong += [
        f"{name} has shape {list(given[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"{shards.folder}: its tensors are not those that config.json describes: {min(wrong)}{more}")


def check_dtypes(shards: Shards) -> None:
    """Raises InputError unless every tensor has one of `PLAIN_DTYPES`.

    int8 and fp8 tensors are meaningless without their scales, and config.json does not always mention quantisation.
    """
    wrong = [(name, tensor) for name, tensor in sorted(shards.tensors.items()) if tensor.dtype not in PLAIN_DTYPES]
    if wrong:
        name, tensor = wrong[0]
        more = f" (and {len(wrong) - 1} more tensors are not)" if len(wrong) > 1 else ""
        raise InputError(
            f"{shards.folder / tensor.file}: tensor {name} has dtype {tensor.dtype}, but must be "
            f"{', '.join(PLAIN_DTYPES.values())}{more}; quantised weights are not supported"
        )
