"""Parts of the start of a run: Accelerate, the model, compilation and CUDA graphs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qwen3llada.errors import InputError
from qwen3llada.modeling.loading import is_adapters_alone, load_pretrained
from qwen3llada.modeling.params import store_attention
from qwen3llada.modeling.streamed import empty_model, materialise
from qwen3llada.objective.attention_kernels import (
    FLASH_ATTENTION_4,
    check_flash_attention_4,
    resolve_implementation,
)
from qwen3llada.objective.last_layer import shorten_last_layer
from qwen3llada.training.checkpoints.shards import is_sharded
from qwen3llada.training.run_params import RunParams
from qwen3llada.training.start.adapters import check_adapters, quantization
from qwen3llada.training.start.groups_and_schedule import optimizer_that_runs
from qwen3llada.training.start.launcher import check_launcher, check_processes, launched_processes
from qwen3llada.training.watch.trackers import accelerator_options

if TYPE_CHECKING:
    from accelerate import Accelerator

    from qwen3llada.training.cuda.gradient_sum import GradientSum
    from qwen3llada.training.cuda.layer_graphs import LayerGraphs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_accelerator(params: RunParams) -> "Accelerator":
    """Accelerate with the requested precision; `accelerate launch` gives ranks and strategy.

    Raises InputError for a precision that the device lacks, and as `launcher.py`'s checks, `check_adapters` and
    `accelerator_options`.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    pure_bf16 = params.param_dtype == "bfloat16"
    precision = "fp16" if params.fp16 else "bf16" if params.bf16 and not pure_bf16 else "no"
    # Gradients are views of DDP's buckets, so that they are stored once.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    AcceleratorState._reset_state()  # an earlier run in this process may have set another precision
    if params.fp16 and not torch.cuda.is_available():
        raise InputError("fp16=true needs a CUDA device, and there is none; bf16=true or neither works here")
    check_launcher(params)
    variable, launched = launched_processes()
    # By default Accelerate joins processes only if there is a device for each.
    on_cpu = launched > 1 and not torch.accelerator.is_available()
    options = accelerator_options(params.telemetry, params.output_dir)
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu, kwargs_handlers=[ddp], **options)
    check_processes(accelerator, variable, launched)
    device = accelerator.device
    check_adapters(params.adapter, device)
    if params.adapter.method == "qlora" and accelerator.is_fsdp2:
        raise InputError(
            "adapter.method=qlora does not work under FSDP2, which cannot shard 4-bit weights: use"
            " adapter.method=lora, or launch/ddp.yaml"
        )
    if params.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return accelerator


def with_optimizer_that_runs(params: RunParams, accelerator: "Accelerator") -> RunParams:
    """`params` with the name of the optimiser that actually runs, for fingerprint, memory estimate and summary.

    Raises InputError as `optimizer_that_runs`.
    """
    name = optimizer_that_runs(params.optim, accelerator.device, sharded=accelerator.is_fsdp2)
    return params.model_copy(update={"optim": params.optim.model_copy(update={"name": name})})


def load_model(params: RunParams, folder: Path, accelerator: "Accelerator", *, whole: bool = False) -> Any:
    """Load the model of `folder` for training: dtype, attention kernel, checkpointing, and config for the sampler.

    Under FSDP2 its parameters are on the meta device (but for adapters' models), until they are sharded: no process
    holds the whole model. The weights of a sharded checkpoint are read by `restore`.

    whole: not to be sharded, also under FSDP2.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"model={str(folder)!r} must be the folder of a Qwen3-LLaDA model: it has no config.json")
    if is_adapters_alone(folder):
        raise InputError(
            f"model={str(folder)!r} holds adapters alone, which cannot be trained on; adapter.merge=true in the"
            " training that wrote it gives a whole model"
        )
    if folder == params.model and is_sharded(folder):
        raise InputError(
            f"model={str(folder)!r} is a checkpoint of FSDP2's shards, which resume_from takes; model must be a"
            " whole one, such as the final model of a run"
        )
    device, dtype = accelerator.device, DTYPES[params.param_dtype]
    implementation = resolve_implementation(params.attention, device)
    to_shard = accelerator.is_fsdp2 and not whole
    if params.adapter.method == "none" and (to_shard or is_sharded(folder)):
        model = empty_model(folder, dtype=dtype, attn_implementation=implementation)
        if not to_shard:
            materialise(model, model, None, torch.device("cpu"))  # `restore` reads the shards
    else:
        quantized = quantization(params.adapter, torch.float16 if params.fp16 else torch.bfloat16)
        placement: dict[str, Any] = {"quantization_config": quantized, "device_map": {"": device}} if quantized else {}
        model = load_pretrained(folder, dtype=dtype, attn_implementation=implementation, **placement)
    model.config.use_cache = False
    store_attention(model.config, params.attention)
    shorten_last_layer(model)
    if params.trained_noise_type is not None:
        model.config.noise_type = params.trained_noise_type
    if params.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def is_compiled(params: RunParams, device: torch.device) -> bool:
    """Whether `params.compile` asks for compiled layers on `device`."""
    return params.compile == "always" or (params.compile == "auto" and device.type == "cuda")


def check_implementation(params: RunParams, device: torch.device) -> None:
    """Raises InputError if the attention kernel that is asked for cannot train on `device`."""
    if params.attention.implementation == "flex_attention" and device.type != "cuda":
        raise InputError(
            f"attention.implementation=flex_attention needs a CUDA device to train on, the model would be on"
            f" {device.type}; auto, sdpa and eager work there"
        )
    asked = {"bf16": params.bf16, "compiled": is_compiled(params, device), "deterministic": params.deterministic}
    check_flash_attention_4(params.attention, device, **asked)


def compile_layers(model: Any, params: RunParams, device: torch.device) -> bool:
    """torch.compile `forward` of each decoder layer and of the last norm, if requested. Returns whether it was.

    All layers share one compilation. Hooks around a layer, such as FSDP's all-gather, are not compiled. Transformers
    applies checkpointing around the layer, so it saves the same memory.
    """
    wanted = is_compiled(params, device)
    if wanted:
        # DDPOptimizer would split a layer at bucket boundaries and prevent fusion across them. It is not needed:
        # with one compiled function per layer, a layer's all-reduce overlaps with the previous layer's backward pass.
        torch._dynamo.config.optimize_ddp = False
        # Masks or none, gradients or none, sizes that vary or are 1: more variants than the default limit of 8, after
        # which torch runs new variants uncompiled.
        torch._dynamo.config.recompile_limit = 64
        if device.type == "cuda":
            from qwen3llada.training.cuda.fused_attention import fuse_attention  # needs Triton

            fuse_attention(model, flash=params.attention.implementation == FLASH_ATTENTION_4)
        for module in (*model.model.layers, model.model.norm):
            module.forward = torch.compile(module.forward)
    return wanted


def graph_layers(
    model: Any, params: RunParams, accelerator: "Accelerator", reduction: "GradientSum | None"
) -> "LayerGraphs | None":
    """CUDA graphs of the compiled layers, captured later during the steps. None if the run does not allow them."""
    whole = not accelerator.is_fsdp2 and params.adapter.method == "none" and not params.gradient_checkpointing
    fixed = model.config.attention_dropout == 0 and accelerator.device.type == "cuda"
    if params.cuda_graphs == "never" or not (whole and fixed):
        return None
    from qwen3llada.training.cuda.layer_graphs import LayerGraphs

    if reduction is not None:
        reduction.share_processors(params.micro_batch_size * params.max_length)
    return LayerGraphs(model.model.layers, reduction)
