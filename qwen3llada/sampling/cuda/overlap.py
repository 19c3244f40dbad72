"""Programmatic dependent launch: a kernel is launched while the one before it still runs, and waits where it reads.

That hides the launch, a good part of the time of small kernels. Every kernel that is launched this way waits before its
first access to memory, so each one begins to work when the one before it has ended, as on any stream.
"""

import triton
import triton.language as tl

OVERLAP = False


@triton.jit
def begin(OVERLAP: tl.constexpr):
    """Wait for the kernels before, and let the next one be launched."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def overlapped() -> dict[str, bool]:
    """Arguments of a launch."""
    return {"OVERLAP": True, "launch_pdl": True} if OVERLAP else {"OVERLAP": False}
