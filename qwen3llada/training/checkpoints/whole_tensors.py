"""Tensors by parameter name, from and to any strategy (one process, DDP, FSDP2)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwen3llada.errors import InputError
from qwen3llada.training.checkpoints.shards import moment, read, weights


def whole(tensor: Tensor, *, keep: bool) -> Tensor | None:
    """The unsharded `tensor` on the CPU. All ranks must call this; only those with `keep` get the result."""
    from torch.distributed.tensor import DTensor

    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu() if keep else None


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Shard `value`, an unsharded tensor of the parameter's shape, like `parameter`."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        return value
    value = value.to(parameter.device)
    # src_data_rank=None: every rank has read the whole tensor, so nothing is sent
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def reshard(model: nn.Module) -> None:
    """Shard gathered parameters again. After a forward pass without a backward pass some FSDP groups are unsharded."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def model_state(model: nn.Module, *, keep: bool) -> dict[str, Tensor] | None:
    """Unsharded trained parameters on the CPU, tied ones once; None, which avoids a copy, if nothing is sharded."""
    from torch.distributed.tensor import DTensor

    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    gathered = {
        name: whole(parameter, keep=keep) for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    return {name: tensor for name, tensor in gathered.items() if tensor is not None}


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, *, keep: bool) -> dict[str, Any]:
    """{"moments": {parameter name: {"exp_avg": …}}, "groups": settings of each group}, unsharded and on the CPU.

    All ranks must call this; only those with `keep` get the moments.
    """
    moments: dict[str, dict[str, Any]] = {}
    for name, parameter in _named(optimizer, model):
        values = optimizer.state.get(parameter, {})
        gathered = {key: whole(v, keep=keep) if isinstance(v, Tensor) else v for key, v in values.items()}
        if keep:
            moments[name] = gathered
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return {"moments": moments, "groups": groups}


def optimizer_shards(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`optimizer_state` with None for each sharded tensor, and these tensors by their key in the shards."""
    from torch.distributed.tensor import DTensor

    moments: dict[str, dict[str, Any]] = {}
    shards: dict[str, Tensor] = {}
    for name, parameter in _named(optimizer, model):
        moments[name] = {}
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, DTensor):
                shards[moment(name, key)] = value
            moments[name][key] = None if isinstance(value, DTensor) else _on_host(value)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return {"moments": moments, "groups": groups}, shards


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    state: dict[str, Any],
    *,
    shards: Path | None = None,
    group: Any = None,
) -> None:
    """Load the result of `optimizer_state`, or of `optimizer_shards` and the model's weights from a checkpoint.

    Args:
        shards: the checkpoint with shards; None: all tensors are in `state`.
        group: as for `shards.read`.

    Raises InputError if its parameters are not this optimiser's, and as `shards.read`.
    """
    moments = state["moments"]
    names = [name for name, _ in _named(optimizer, model)]
    if set(names) != moments.keys():
        odd = sorted(set(names) ^ moments.keys())
        raise InputError(f"optimizer.pt: {len(odd)} parameters are in the file or in the model alone, as {odd[0]}")
    placed: dict[int, dict[str, Any]] = {}
    wanted = weights(model)
    for number, (name, parameter) in enumerate(_named(optimizer, model)):
        placed[number] = {}
        for key, value in moments[name].items():
            if value is None:
                wanted[moment(name, key)] = placed[number][key] = torch.empty_like(parameter, requires_grad=False)
            else:
                same = isinstance(value, Tensor) and value.shape == parameter.shape
                placed[number][key] = sharded_like(value, parameter) if same else value
    if shards is not None:
        read(shards, wanted, group)
    groups = optimizer.state_dict()["param_groups"]
    settings = [{**stored, "params": group["params"]} for stored, group in zip(state["groups"], groups, strict=True)]
    optimizer.load_state_dict({"state": placed, "param_groups": settings})


def _on_host(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _named(optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, parameter) in the optimiser's order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[parameter], parameter
