"""Kernels that start before the one before them has ended (programmatic dependent launch, CUDA programming guide).

Such a kernel must wait for the results of the kernel before it, and so for all earlier ones, before it reads or writes
anything that one of them wrote or reads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def overlaps(like: Tensor) -> bool:
    """Whether kernels may start early: on a Hopper GPU and in bfloat16, where it was measured."""
    return like.is_cuda and like.dtype == torch.bfloat16 and torch.cuda.get_device_capability(like.device)[0] == 9


def launch_options(overlap: bool) -> dict[str, bool]:
    """Options of a kernel's launch."""
    return {"launch_pdl": True} if overlap else {}


@triton.jit
def let_next_kernel_start(OVERLAP: tl.constexpr):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_kernel_before(OVERLAP: tl.constexpr):
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
