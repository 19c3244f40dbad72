"""A model whose weights are read from its files one module at a time, onto the device, and never whole on the host."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3llada.artifacts import read_json
from qwen3llada.errors import InputError
from qwen3llada.modeling.loading import check_is_ours, files_blamed
from qwen3llada.modeling.qwen3_checkpoint import HEAD, check_dtypes
from qwen3llada.modeling.shards import Shards, find_shards, opened

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def empty_model(folder: Path, *, dtype: "torch.dtype", attn_implementation: str) -> Any:
    """The Qwen3LLadaForMaskedLM that `folder` describes, in training mode, with parameters on the meta device.

    Buffers are real. Reads the configuration, no weights. Raises: InputError as `load_pretrained`.
    """
    from accelerate import init_empty_weights
    from transformers import GenerationConfig

    from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM

    check_is_ours(folder)
    with files_blamed(folder):
        config = Qwen3LLadaConfig.from_pretrained(folder, trust_remote_code=False)
        config.name_or_path = str(folder)
        with init_empty_weights(include_buffers=False):
            model = Qwen3LLadaForMaskedLM._from_config(config, dtype=dtype, attn_implementation=attn_implementation)
        model.tie_weights()  # each module has got a meta tensor of its own
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_dict(read_json(folder / "generation_config.json"))
    return model.train()


class StreamedWeights:
    """Weights of the model in a folder, for the parameters of an `empty_model`."""

    def __init__(self, folder: Path, model: "nn.Module"):
        """Reads the headers of the files.

        Raises: InputError if a parameter is not in the files or has another shape there, if they hold others, or as
        `find_shards` and `check_dtypes`.
        """
        with files_blamed(folder):
            self.files: Shards = find_shards(folder)
            check_dtypes(self.files)
        names = dict(model.named_parameters())
        wrong = [self._fault(name, tuple(p.shape)) for name, p in names.items()]
        tied = {HEAD} if model.config.tie_word_embeddings else set()
        wrong += [f"{name} is not one of them" for name in sorted(self.files.tensors.keys() - names.keys() - tied)]
        if faults := [fault for fault in wrong if fault]:
            more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
            raise InputError(f"{folder}: its weights are not those that config.json describes: {faults[0]}{more}")

    def read(self, name: str, device: "torch.device") -> "Tensor":
        """The tensor `name` as stored, on `device`."""
        with opened(self.files.folder / self.files.tensors[name].file) as reader:
            return reader.get_tensor(name).to(device)

    def _fault(self, name: str, shape: tuple[int, ...]) -> str:
        found = self.files.tensors.get(name)
        if found is None:
            return f"{name} is missing"
        return "" if found.shape == shape else f"{name} has shape {list(found.shape)} instead of {list(shape)}"


def materialise(
    model: "nn.Module", module: "nn.Module", weights: StreamedWeights | None, device: "torch.device"
) -> None:
    """Replace the meta parameters in `module`, a part of `model`, by real ones on `device`.

    weights: where the values come from; None: they stay undefined, because a checkpoint is read into them later.
    Parameters that modules share stay shared.
    """
    import torch
    from torch import nn

    names = {parameter: name for name, parameter in model.named_parameters()}
    wanted = {id(parameter) for parameter in module.parameters() if parameter.is_meta}
    made: dict[int, nn.Parameter] = {}
    for owner in model.modules():
        for leaf, old in list(owner._parameters.items()):
            if old is None or id(old) not in wanted:
                continue
            if id(old) not in made:
                if weights is None:
                    value = torch.empty_like(old, device=device)
                else:
                    value = weights.read(names[old], device).to(old.dtype)
                made[id(old)] = nn.Parameter(value, requires_grad=old.requires_grad)
            owner._parameters[leaf] = made[id(old)]
