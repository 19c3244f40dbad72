"""Estimate of a run's device memory before it starts, and advice for when it is not enough."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from qwen3llada.diffusion.fused_cross_entropy import ACCELERATOR_CHUNK_BYTES, CPU_CHUNK_BYTES
from qwen3llada.errors import InputError
from qwen3llada.training.run_params import RunParams
from qwen3llada.training.start.groups_and_schedule import matrices_of
from qwen3llada.training.start.optimizers import OPTIMIZERS

GIB = 2**30
QLORA = "adapter.method=qlora (4-bit base weights; not under FSDP2)"


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on each device, without fragmentation and library workspaces (one to two GiB on a GPU)."""

    process: int  # what the process held before it loaded the model: on a CPU, whose peak counts it too
    weights: int
    gradients: int
    moments: int
    activations: int  # of one micro-batch, saved for the backward pass
    projection: int  # vocabulary projection: a chunk of logits, and the weight's gradient in float32

    @property
    def total(self) -> int:
        return self.process + self.weights + self.gradients + self.moments + self.activations + self.projection

    def __str__(self) -> str:
        parts = [*(["process"] if self.process else []), "weights", "gradients", "moments", "activations", "projection"]
        listed = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in parts)
        return f"{self.total / GIB:.2f} GiB ({listed})"


def estimate_memory(
    params: RunParams, model: Any, *, shards: int, device: str, compiled: bool, process: int = 0
) -> MemoryEstimate:
    """Estimate training memory from the model's shapes. With checkpointing, activations exist for one layer at a time.

    Args:
        shards: ranks over which the parameters are sharded.
        compiled: whether the layers are (`compile_layers`).
        process: bytes that the process held before it loaded the model, where they count.
    """
    config, computed = model.config, 2 if params.bf16 or params.fp16 else 4
    stored = {"float32": 4, "bfloat16": 2}[params.param_dtype]
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stored_weights = sum(p.numel() * p.element_size() for p in model.parameters())
    rounded = count * computed if computed < stored else 0  # kept by autocast
    optimizer = OPTIMIZERS[params.optim.name]
    moment = optimizer.moment_bytes or stored
    matrices = sum(p.numel() for p in matrices_of(model)) if optimizer.matrices is not None else 0
    moments = (trained - matrices) * optimizer.moments + matrices * (optimizer.matrices or 0)

    masked = device == "cpu" and (params.attention.policy != "full" or params.attention.keeps_within_documents)
    layer = layer_bytes(config, computed, compiled=compiled, masked=masked)
    layers, checkpoint = config.num_hidden_layers, config.hidden_size * computed
    kept = layers * checkpoint + layer if params.gradient_checkpointing else layers * layer
    tokens = params.micro_batch_size * params.max_length * params.copies

    vocabulary = config.vocab_size * config.hidden_size * 4
    limit = CPU_CHUNK_BYTES if device == "cpu" else ACCELERATOR_CHUNK_BYTES
    head_trained = model.get_output_embeddings().weight.requires_grad
    return MemoryEstimate(
        process=process,
        weights=(stored_weights + rounded) // shards + params.models_beside * count * computed,
        gradients=trained * stored // shards,
        moments=moments * moment // shards,
        activations=tokens * kept,
        projection=min(limit, tokens * config.vocab_size * computed) + head_trained * vocabulary,
    )


def layer_bytes(config: Any, computed: int, *, compiled: bool, masked: bool) -> int:
    """Bytes per token that a layer saves for its backward pass.

    Compiled: four vectors of the hidden size (the residual stream before and inside the layer, both normalised inputs),
    queries and keys before and after norm and rotation, values, the attention output, gate, up and their product.
    Otherwise each operation saves its inputs. Norms have two, SiLU has one, and all that concerns norms is in float32.

    Args:
        computed: bytes of a number in matrix products. Norms are computed in float32 in any case.
        masked: attention gets a mask. On a CPU, keys and values are then repeated for each query head.
    """
    hidden, between = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    if compiled:
        return computed * (4 * hidden + 3 * queries + 3 * keys + 3 * between)
    repeated = 2 * computed * (queries - keys) if masked else 0
    if computed == 4:
        return 4 * (6 * hidden + 4 * queries + 4 * keys + 4 * between) + repeated
    return 20 * hidden + 12 * queries + 12 * keys + 8 * between + repeated


class OutOfDeviceMemoryError(InputError):
    """The device is out of memory. The one-line message names the knobs that save memory."""


@contextmanager
def explain_out_of_memory(params: RunParams, *, loading: bool = False) -> Iterator[None]:
    """Turn an out-of-memory error into one line that names the knobs to change, cheapest first.

    `loading`: the error arose while loading and preparing the model, before the first batch.
    """
    try:
        yield
    except RuntimeError as error:  # torch's allocator has an error class; errors from CUDA and bitsandbytes are plain
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        where = " while the model is loaded" if loading else ""
        ways = loading_advice(params) if loading else advice(params)
        raise OutOfDeviceMemoryError(f"the device is out of memory{where}; {ways}") from error


def advice(params: RunParams) -> str:
    """Unused knobs that save memory in a step, cheapest first."""
    ways = []
    if params.micro_batch_size > 1:
        ways.append(f"{params.smaller_micro_batch} (the same training)")
    if not params.gradient_checkpointing and params.cuda_graphs == "auto":
        ways.append("cuda_graphs=never (slower with small batches)")
    if not params.gradient_checkpointing:
        ways.append("gradient_checkpointing=true (about a third slower)")
    if not (params.bf16 or params.fp16):
        ways.append("bf16=true")
    if params.optim.name == "adamw":
        ways.append("optim.name=adamw8bit (not under FSDP2)")
    if params.adapter.method == "none":
        ways.append("adapter.method=lora")
    elif params.adapter.method == "lora":
        ways.append(QLORA)
    return "try, in this order: " + "; ".join([*ways, _more_gpus(params)])


def loading_advice(params: RunParams) -> str:
    """Unused knobs that make the model itself smaller on each device."""
    ways = []
    if params.param_dtype == "float32" and params.adapter.method != "qlora":
        ways.append("param_dtype=bfloat16 with bf16=true (rounds small updates)")
    if params.adapter.method != "qlora":
        ways.append(QLORA)
    return "try, in this order: " + "; ".join([*ways, _more_gpus(params)])


def _more_gpus(params: RunParams) -> str:
    """FSDP2, and the knobs that must change with it."""
    changes = ["optim.name=adamw"] if OPTIMIZERS[params.optim.name].bitsandbytes else []
    changes += ["adapter.method=lora"] if params.adapter.method == "qlora" else []
    return "more GPUs with launch/fsdp2.yaml" + (f" and {' and '.join(changes)}" if changes else "")
