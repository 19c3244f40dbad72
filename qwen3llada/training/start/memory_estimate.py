"""Estimate of a run's device memory before it starts, and of the largest micro-batch that fits."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from qwen3llada.diffusion.fused_cross_entropy import ACCELERATOR_CHUNK_BYTES, CPU_CHUNK_BYTES
from qwen3llada.training.run_params import RunParams
from qwen3llada.training.start.groups_and_schedule import matrices_of
from qwen3llada.training.start.layer_bytes import layer_bytes
from qwen3llada.training.start.optimizers import OPTIMIZERS
from qwen3llada.training.start.sharding import ShardingPlan

GIB = 2**30
USABLE = 0.93  # of a GPU's memory; the rest is taken by CUDA, NCCL, workspaces and fragmentation
ROOM = 0.85  # share of that which keeping weights gathered may fill
SLACK = 1.04  # measured over computed activations of compiled layers on a GPU
MOST_ROWS = 65536  # the upper bound of micro_batch_size
PLANS = (
    ShardingPlan(gathered=True, sums_locally=True),
    ShardingPlan(gathered=True, sums_locally=False),
    ShardingPlan(gathered=False, sums_locally=False),
)
LEAST = PLANS[-1]  # takes the least memory
LAYERS_IN_FLIGHT = 3  # under FSDP2: the layer that computes, and the next as it arrives and as it is unpacked


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on each device, without fragmentation and library workspaces (one to two GiB on a GPU).

    The parts are not all at their largest at once: `total` is that of the moment when most is held, either at the end
    of the forward pass (activations) or at the end of the backward pass (gradients).
    """

    process: int  # what the process held before it loaded the model: on a CPU, whose peak counts it too
    weights: int
    gathered: int  # under FSDP2: whole 16-bit weights, at the end of the forward pass
    gradients: int
    moments: int
    activations: int  # of one micro-batch, saved for the backward pass
    projection: int  # vocabulary projection: a chunk of logits, and the weight's gradient in float32
    total: int
    largest: int | None = None  # rows of the largest micro-batch that fits; 0: not even one. None: memory not known

    def __str__(self) -> str:
        parts = [name for name in ("process", "weights", "gathered", "gradients") if getattr(self, name)]
        listed = ", ".join(
            f"{n} {getattr(self, n) / GIB:.2f}" for n in [*parts, "moments", "activations", "projection"]
        )
        return f"{self.total / GIB:.2f} GiB at the peak ({listed})"


def estimate_memory(
    params: RunParams,
    model: Any,
    *,
    device: str,
    compiled: bool,
    shards: int = 1,
    plan: ShardingPlan | None = None,
    process: int = 0,
    ddp: bool = False,
) -> MemoryEstimate:
    """Estimate training memory from the model's shapes. With checkpointing, activations exist for one layer at a time.

    Args:
        compiled: whether the layers are (`compile_layers`).
        shards: ranks over which the parameters are sharded.
        plan: what FSDP2 keeps gathered; None: not FSDP2.
        process: bytes that the process held before it loaded the model, where they count.
        ddp: whether gradients are in DDP's buckets, which stay from step to step.
    """
    config, computed = model.config, 2 if params.bf16 or params.fp16 else 4
    stored = {"float32": 4, "bfloat16": 2}[params.param_dtype]
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stored_weights = sum(p.numel() * p.element_size() for p in model.parameters())
    rounded = count * computed if computed < stored and plan is None else 0  # kept by autocast until the backward pass

    tokens = params.micro_batch_size * params.max_length * params.copies
    masked = device == "cpu" and (params.attention.policy != "full" or params.attention.keeps_within_documents)
    slack = SLACK if compiled and device != "cpu" else 1.0
    layer = int(tokens * layer_bytes(config, computed, compiled=compiled, masked=masked) * slack)
    layers, between = config.num_hidden_layers, tokens * config.hidden_size * computed
    saved = layers * between if params.gradient_checkpointing else layers * layer
    again = layer if params.gradient_checkpointing else 0  # of the layer that is computed again

    head = model.get_output_embeddings().weight
    head_gradient = 4 * head.numel() * head.requires_grad
    limit = CPU_CHUNK_BYTES if device == "cpu" else ACCELERATOR_CHUNK_BYTES
    chunk = min(limit, tokens * config.vocab_size * computed)

    weights = stored_weights // shards + params.models_beside * count * computed
    gradients = trained * stored // shards
    moments = _moments(params, model, trained, stored) // shards
    sums = plan is not None and plan.sums_locally and params.accumulates
    gathered = Gathered(0, 0, 0) if plan is None else _gathered(model, plan, computed, sums=sums)
    early = gradients * (ddp + params.accumulates)  # that are there before the backward pass of a micro-batch
    if sums:  # whole gradients; the shards come into being as these are reduced and freed
        early = 4 * trained
    forward = gathered.forward + rounded + early + saved + head_gradient + max(chunk, again)
    backward = gathered.backward + max(gradients, 0 if sums else early) + gathered.gradients + layer
    return MemoryEstimate(
        process=process,
        weights=weights + rounded,
        gathered=gathered.forward,
        gradients=max(gradients, early),
        moments=moments,
        activations=saved + again,
        projection=chunk + head_gradient,
        total=process + weights + moments + max(forward, backward),
    )


def device_memory(device: torch.device) -> int | None:
    """Bytes of `device` that a run can use; None if not known, as on a CPU, whose memory others use, too."""
    return int(torch.cuda.get_device_properties(device).total_memory * USABLE) if device.type == "cuda" else None


def largest_micro_batch(params: RunParams, model: Any, usable: int, **options: Any) -> int:
    """Rows of the largest micro-batch that fits into `usable` bytes; 0 if not even one does.

    `options`: as for `estimate_memory`.
    """

    def fits(rows: int) -> bool:
        with_rows = params.model_copy(update={"micro_batch_size": rows})
        return estimate_memory(with_rows, model, **options).total <= usable

    low, high = 0, 1
    while high <= MOST_ROWS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def choose_plan(params: RunParams, model: Any, usable: int | None, **options: Any) -> ShardingPlan:
    """The first of `PLANS`, fastest first, that fits into `usable` bytes; the last if none does or that is not known.

    It must fit with room to spare, because what is kept gathered saves little time beside large micro-batches.
    `options`: as for `estimate_memory`.
    """
    for plan in PLANS:
        if usable is not None and estimate_memory(params, model, plan=plan, **options).total <= ROOM * usable:
            return plan
    return LEAST


def over_budget(params: RunParams, memory: MemoryEstimate, usable: int) -> str:
    """What to add to the line of an estimate above `usable` bytes, "" to one below: the micro-batch that would fit."""
    if memory.total <= usable:
        return ""
    fitting = params.smaller_micro_batch(memory.largest) if memory.largest else "no micro-batch"
    return f"; more than the {usable / GIB:.0f} GiB that can be used, into which {fitting} would fit"


def _moments(params: RunParams, model: Any, trained: int, stored: int) -> int:
    """Bytes of the optimiser's moving averages of all trained parameters."""
    optimizer = OPTIMIZERS[params.optim.name]
    matrices = sum(p.numel() for p in matrices_of(model)) if optimizer.matrices is not None else 0
    moments = (trained - matrices) * optimizer.moments + matrices * (optimizer.matrices or 0)
    return moments * (optimizer.moment_bytes or stored)


class Gathered(NamedTuple):
    """Bytes that FSDP2 holds whole on each device."""

    forward: int  # weights, at the end of the forward pass
    backward: int  # weights, at the end of the backward pass: each layer's are freed after its own
    gradients: int  # on their way to the ranks, at the end of the backward pass


def _gathered(model: Any, plan: ShardingPlan, computed: int, *, sums: bool) -> Gathered:
    """The outermost group (head, norm, tied embeddings) stays gathered, and its gradients are reduced last.

    They exist twice then: as they were computed, and in float32 to be sent.

    sums: gradients of several micro-batches were summed up, in float32. Otherwise they were computed in 16 bits.
    """
    count = sum(p.numel() for p in model.parameters())
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    root = head.numel()
    few = root + LAYERS_IN_FLIGHT * layer
    sent = max(layer, root if embedding is head else root + embedding.numel())
    return Gathered(
        forward=(count if plan.gathered else few) * computed,
        backward=few * computed,
        gradients=(4 + (4 if sums else computed)) * sent,
    )
