"""Which attention kernel computes a pass."""

import importlib.util
import logging
from contextlib import AbstractContextManager, nullcontext

import torch

from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import plan
from qwen3llada.objective.params import KernelParams

log = logging.getLogger(__name__)

FLASH_ATTENTION_4 = "flash_attention_4"
# Under others a row's mask depends on its prompt. Passes whose masks differ between rows are left to FlexAttention.
FLASH_POLICIES = ("full", "block_causal", "window")
HOPPER = 9  # compute capability of H100 and H200

# On Hopper cuDNN's kernel is the fastest, elsewhere flash attention's; both are exact. The first that can run is taken.
SDPA_PRIORITY = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


def resolve_implementation(attention: KernelParams, device: torch.device) -> str:
    """The attention, in Transformers' terms, that is asked for or that "auto" stands for."""
    if attention.implementation == FLASH_ATTENTION_4:
        return "flex_attention"
    if attention.implementation != "auto":
        return attention.implementation
    everything = attention.policy == "full" and not attention.keeps_within_documents
    return "sdpa" if everything or device.type != "cuda" else "flex_attention"


def check_flash_attention_4(
    attention: KernelParams, device: torch.device, *, bf16: bool, compiled: bool, deterministic: bool
) -> None:
    """Raises InputError if FlashAttention-4 is asked for and cannot run: one line that says what is missing."""
    if attention.implementation != FLASH_ATTENTION_4:
        return
    asked = f"attention.implementation={FLASH_ATTENTION_4}"
    if others := [name for name in plan(attention.policy) if name not in FLASH_POLICIES]:
        raise InputError(f"{asked} computes policies {', '.join(FLASH_POLICIES)}, not {', '.join(others)}")
    if not bf16 or deterministic or not compiled:
        raise InputError(
            f"{asked} needs bf16=true, deterministic=false and compiled layers, given {bf16=}, {deterministic=},"
            f" {compiled=}"
        )
    if device.type != "cuda":
        raise InputError(f"{asked} needs a CUDA device, the model would be on {device.type}; auto works there")
    major, minor = torch.cuda.get_device_capability(device)
    if major != HOPPER:
        raise InputError(f"{asked} needs an H100 or H200 (compute capability 9.0), this GPU has {major}.{minor}")
    if not has_flash_attention_4():
        raise InputError(f"{asked} needs flash-attn-4, which is not installed: pip install '.[flash]'")


def has_flash_attention_4() -> bool:
    """Whether the package flash-attn-4 is installed. It is not imported: that takes seconds."""
    try:
        return importlib.util.find_spec("flash_attn.cute") is not None
    except ModuleNotFoundError:
        return False


class FallBacks:
    """Counts passes that FlashAttention-4 was asked for and another kernel computes. The first is logged."""

    def __init__(self) -> None:
        self.passes = 0

    def count(self) -> None:
        """Take note of a pass whose mask differs between rows."""
        if not self.passes:
            log.warning(
                "attention.implementation=%s computes masks that are the same for all rows; flex_attention computes"
                " passes with padding, prompts or documents",
                FLASH_ATTENTION_4,
            )
        self.passes += 1


def attention_kernel(device: torch.device) -> AbstractContextManager:
    """Which of torch's scaled-dot-product kernels are tried, in order."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([getattr(SDPBackend, name) for name in SDPA_PRIORITY], set_priority=True)
