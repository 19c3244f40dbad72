"""Parameter groups, the optimiser over them, and the schedule of the learning rate."""

import importlib.util
import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from qwen3llada.errors import InputError
from qwen3llada.training.run_params import OptimParams
from qwen3llada.training.start.optimizers import FALL_BACK, OPTIMIZERS

log = logging.getLogger(__name__)


def parameter_groups(model: nn.Module, weight_decay: float, *, muon: bool = False) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with weight decay, the others without.

    The others are those with fewer than two dimensions (norms, biases), and the input and output embeddings: decay
    would shrink a rare token's row in every step in which the token does not occur.

    muon: the group of matrices says `muon: True`, as `MuonAndAdamW` expects.
    """
    decayed = matrices_of(model)
    taken = {id(p) for p in decayed}
    kept = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    marked = {"muon": True} if muon else {}
    groups = [{"params": decayed, "weight_decay": weight_decay, **marked}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters with at least two dimensions, without the input and output embeddings."""
    embeddings = {id(module.weight) for module in _embeddings(model)}
    return [p for p in model.parameters() if p.requires_grad and p.ndim >= 2 and id(p) not in embeddings]


def build_optimizer(model: nn.Module, params: OptimParams) -> torch.optim.Optimizer:
    """The optimiser `params.name` over the trainable parameters of `model`."""
    optimizer = OPTIMIZERS[params.name]
    groups = parameter_groups(model, params.weight_decay, muon=optimizer.matrices is not None)
    return optimizer.build(groups, params.lr, params.betas, params.eps)


def optimizer_that_runs(params: OptimParams, device: torch.device, *, sharded: bool) -> str:
    """Name of the optimiser that runs on `device` when `params.name` is requested. `sharded`: under FSDP2.

    Without a GPU, adamw replaces bitsandbytes' optimisers, with a warning. The caller records the name. Raises
    InputError for an optimiser that does not take FSDP2's sharded parameters (bitsandbytes' kernels, and Muon's
    products of whole matrices), and if bitsandbytes is not installed.
    """
    name = params.name
    if sharded and not OPTIMIZERS[name].sharded:
        raise InputError(
            f"optim.name={name} does not work under FSDP2, which shards the parameters: use optim.name={FALL_BACK}, or"
            " launch/ddp.yaml"
        )
    if not OPTIMIZERS[name].bitsandbytes:
        return name
    if device.type != "cuda":
        log.warning("optim.name=%s needs a CUDA device, this runs on %s; %s runs instead", name, device.type, FALL_BACK)
        return FALL_BACK
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"optim.name={name} needs bitsandbytes, which is not installed")
    return name


def build_schedule(
    optimizer: torch.optim.Optimizer, params: OptimParams, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate as a function of the optimiser step, of `total_steps`."""
    from torch.optim.lr_scheduler import LambdaLR

    warmup, decay = warmup_and_decay(params.scheduler, params.warmup_ratio, params.decay_ratio, total_steps)
    return LambdaLR(optimizer, partial(rate_factor, params.scheduler, warmup, decay, total_steps))


def rate_factor(scheduler: str, warmup: int, decay: int, total_steps: int, step: int) -> float:
    """The learning rate after `step` steps as a part of the highest one: the formulas of `transformers.get_scheduler`.

    They are written out because its module imports peft, bitsandbytes and torch's compiler, which takes two seconds.
    """
    if step < warmup:
        return step / warmup
    if scheduler == "constant_with_warmup":
        return 1.0
    if scheduler == "linear":
        return max(0.0, (total_steps - step) / max(1, decay))
    if scheduler == "warmup_stable_decay" and step >= total_steps:
        return 0.0
    falling = max(0, step - (total_steps - decay))
    return 0.5 * (1.0 + math.cos(math.pi * (falling / max(1, decay))))


def set_schedule(schedule: torch.optim.lr_scheduler.LambdaLR, step: int) -> None:
    """Move a new schedule, and its optimiser's learning rate, to the state after `step` steps."""
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule.load_state_dict(schedule.state_dict() | {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates})


def warmup_and_decay(scheduler: str, warmup_ratio: float, decay_ratio: float, total_steps: int) -> tuple[int, int]:
    """Number of warm-up and of decay steps among `total_steps`."""
    warmup = round(warmup_ratio * total_steps)
    if scheduler == "constant_with_warmup":
        return warmup, 0
    if scheduler == "warmup_stable_decay":
        return warmup, min(round(decay_ratio * total_steps), total_steps - warmup)
    return warmup, total_steps - warmup


def _embeddings(model: nn.Module) -> Iterator[nn.Module]:
    """Input embeddings and the vocabulary projection of a Transformers model, tied or not."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module
        head = getattr(module, "get_output_embeddings", lambda: None)()
        if head is not None:
            yield head
