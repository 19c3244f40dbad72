"""Which attention kernel computes a pass."""

from contextlib import AbstractContextManager, nullcontext

import torch

from qwen3llada.objective.params import KernelParams

# On Hopper cuDNN's kernel is the fastest, elsewhere flash attention's; both are exact. The first that can run is taken.
SDPA_PRIORITY = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


def resolve_implementation(attention: KernelParams, device: torch.device) -> str:
    """The attention kernel that is asked for, or that "auto" stands for."""
    if attention.implementation != "auto":
        return attention.implementation
    everything = attention.policy == "full" and not attention.keeps_within_documents
    return "sdpa" if everything or device.type != "cuda" else "flex_attention"


def attention_kernel(device: torch.device) -> AbstractContextManager:
    """Which of torch's scaled-dot-product kernels are tried, in order."""
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([getattr(SDPBackend, name) for name in SDPA_PRIORITY], set_priority=True)
