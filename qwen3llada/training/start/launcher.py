"""Checks of the launcher's environment variables: they may set ranks and strategy, but not change the arithmetic.

Accelerate reads settings from variables that `accelerate launch` sets, or that are left over in a shell. Variables that
would change results without the parameters showing it are refused by name. Based on Accelerate 1.15: `accelerator.py`,
`state.py`, `utils/dataclasses.py` (plug-ins) and `utils/launch.py` (what the launcher sets).
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qwen3llada.errors import InputError
from qwen3llada.training.run_params import RunParams

if TYPE_CHECKING:
    from accelerate import Accelerator

OFF = ("", "0", "false", "no", "none")
# Device, logging, and FSDP, which is checked separately.
HARMLESS = {
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_ENABLE_RICH",
    "ACCELERATE_LOG_LEVEL",
    "ACCELERATE_TORCH_DEVICE",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_USE_FSDP",
}
# Options of torch.compile for the whole model. They have no effect without a backend.
DYNAMO_DETAILS = {f"ACCELERATE_DYNAMO_{name}" for name in ("MODE", "USE_FULLGRAPH", "USE_DYNAMIC")}
DYNAMO_DETAILS |= {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"}
# Variable -> the reason for refusing it, or the knob to use instead.
INSTEAD = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed is not supported; use launch/fsdp2.yaml",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported; use launch/fsdp2.yaml",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context and sequence parallelism are not supported, and FSDP2"
    " must be on for hybrid sharding",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's data parallelism is not supported",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "the knob is gradient_accumulation_steps",
    "ACCELERATE_GRADIENT_CLIPPING": "the knob is max_grad_norm",
    "ACCELERATE_MIXED_PRECISION": "the knobs are bf16 and fp16",
    "ACCELERATE_DYNAMO_BACKEND": "the knob is compile",
    "FSDP_ACTIVATION_CHECKPOINTING": "the knob is gradient_checkpointing",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "the knob is gradient_checkpointing",
    "FSDP_IGNORED_MODULES": "gradients of these modules would not be summed over processes",
    "FSDP_OFFLOAD_PARAMS": "parameters cannot be kept on the host",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "weights are read layer by layer in any case",
}
LAYER = "Qwen3DecoderLayer"  # what FSDP2 gathers at a time (`sharding.shard`)
WRAPPING = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": LAYER}
PARALLEL = "PARALLELISM_CONFIG_"
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # in Accelerate's order


def check_launcher(params: RunParams, environ: Mapping[str, str] = os.environ) -> None:
    """Raises InputError, naming the variable, if `environ` holds one that would change the arithmetic of a run."""
    for name in sorted(environ):
        if name.startswith("ACCELERATE_") and not _allowed(name, environ, params):
            raise _refusal(name, environ[name])
    if not asks_for_fsdp(environ):
        return
    version = environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise InputError(f"FSDP_VERSION={version} must be 2: FSDP{version} is not supported; use launch/fsdp2.yaml")
    for name in sorted(INSTEAD.keys() & environ.keys()):
        if name.startswith("FSDP_") and not _off(environ[name]):
            raise _refusal(name, environ[name])
    for name, only in WRAPPING.items():
        if environ.get(name, only) not in ("", only):
            raise InputError(f"environment: {name}={environ[name]} must be {only}: a layer is gathered at a time")


def launched_processes(environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """The variable with the number of launched processes, and that number; ("WORLD_SIZE", 1) without a launcher.

    Raises InputError if its value is not a number of processes.
    """
    name = next((name for name in WORLD_SIZES if name in environ), WORLD_SIZES[0])
    text = environ.get(name, "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{name}={text!r} must be the number of processes, 1 or more")
    return name, int(text)


def check_processes(
    accelerator: "Accelerator", name: str, launched: int, environ: Mapping[str, str] = os.environ
) -> None:
    """Raises InputError if the launched processes did not form one group, or lack the requested strategy.

    Otherwise each would train alone into the same folders, or with DDP instead of FSDP2. `name` and `launched` are the
    result of `launched_processes` before Accelerate started, because Accelerate may set WORLD_SIZE itself.
    """
    if accelerator.num_processes != launched:
        raise InputError(f"{name}={launched} processes were launched, of which {accelerator.num_processes} met")
    if asks_for_fsdp(environ) and not accelerator.is_fsdp2:
        value, device = environ["ACCELERATE_USE_FSDP"], accelerator.device.type
        raise InputError(
            f"ACCELERATE_USE_FSDP={value} asks for FSDP2, which Accelerate starts on GPUs; this would run without it on"
            f" {device}"
        )


def asks_for_fsdp(environ: Mapping[str, str]) -> bool:
    return environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1", "yes", "y", "t", "on")


def _allowed(name: str, environ: Mapping[str, str], params: RunParams) -> bool:
    value = environ[name]
    if name == "ACCELERATE_USE_PARALLELISM_CONFIG" and asks_for_fsdp(environ):
        return all(environ.get(f"{PARALLEL}{kind}_SIZE", "1") == "1" for kind in ("TP", "CP", "SP"))  # hybrid sharding
    if name == "ACCELERATE_GRADIENT_ACCUMULATION_STEPS":
        return value == "1"  # Accelerate divides gradients by it
    if name == "ACCELERATE_MIXED_PRECISION":
        return {"no": True, "bf16": params.bf16, "fp16": params.fp16}.get(value.lower(), False)
    return name in HARMLESS or name in DYNAMO_DETAILS or _off(value)


def _off(value: str) -> bool:
    return value.lower() in OFF


def _refusal(name: str, value: str) -> InputError:
    reason = INSTEAD.get(name, "Accelerate would change the run behind its parameters")
    return InputError(f"environment: {name}={value} must not be set: {reason}")
