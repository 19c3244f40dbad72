"""Optimisers and learning-rate schedules."""

import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from qwen3llada.training.params import OptimParams

log = logging.getLogger(__name__)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, which decay, and the rest, which does not.

    The rest is everything with fewer than two dimensions (norms, biases) and the embeddings, input and output alike: a
    row of a rare token would shrink with every step in which the token does not occur.
    """
    embeddings = {id(module.weight) for module in _embeddings(model)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in embeddings]
    kept = [p for p in trainable if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, params: OptimParams) -> tuple[torch.optim.Optimizer, str]:
    """The optimiser of `params.name` over the trainable parameters of `model`, which must be on their device.

    Returns: the optimiser, and the name of what it is: "adamw" where an 8-bit one was asked for and cannot run here,
    for lack of a GPU or of bitsandbytes. The caller records the name.
    """
    groups = parameter_groups(model, params.weight_decay)
    device = groups[0]["params"][0].device
    reason = None if params.name == "adamw" else _why_not_8bit(device)
    if reason:
        log.warning("optim.name=%s cannot run here: %s; adamw runs instead", params.name, reason)
    if params.name == "adamw" or reason:
        fused = device.type in ("cuda", "cpu", "mps")
        return torch.optim.AdamW(groups, lr=params.lr, betas=params.betas, eps=params.eps, fused=fused), "adamw"
    import bitsandbytes

    if params.name == "lion8bit":
        return bitsandbytes.optim.Lion8bit(groups, lr=params.lr, betas=params.betas), params.name
    return bitsandbytes.optim.AdamW8bit(groups, lr=params.lr, betas=params.betas, eps=params.eps), params.name


def build_schedule(
    optimizer: torch.optim.Optimizer, params: OptimParams, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate as a function of the step, by transformers' formulas; `total_steps` counts optimiser steps."""
    from transformers import get_scheduler

    warmup, decay = warmup_and_decay(params.scheduler, params.warmup_ratio, params.decay_ratio, total_steps)
    special = {"num_decay_steps": decay} if params.scheduler == "warmup_stable_decay" else {}
    return get_scheduler(
        params.scheduler,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=special,
    )


def set_schedule(schedule: torch.optim.lr_scheduler.LambdaLR, step: int) -> None:
    """Put a new schedule, and the learning rate of its optimiser, after so many steps."""
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule.load_state_dict(schedule.state_dict() | {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates})


def warmup_and_decay(scheduler: str, warmup_ratio: float, decay_ratio: float, total_steps: int) -> tuple[int, int]:
    """How many of `total_steps` have a rising, and how many a falling learning rate."""
    warmup = round(warmup_ratio * total_steps)
    if scheduler == "constant_with_warmup":
        return warmup, 0
    if scheduler == "warmup_stable_decay":
        return warmup, min(round(decay_ratio * total_steps), total_steps - warmup)
    return warmup, total_steps - warmup


def _embeddings(model: nn.Module) -> Iterator[nn.Module]:
    """Input embeddings, and the vocabulary projection of a transformers model, tied to them or not."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module
        head = getattr(module, "get_output_embeddings", lambda: None)()
        if head is not None:
            yield head


def _why_not_8bit(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it needs a CUDA device, the model is on {device.type}"
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    return None
