"""Which requests the CUDA graphs know."""

import importlib.util
from typing import Any

from qwen3llada.sampling.cuda.packed_model import unsupported
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.request import Request

# A list, not a field of `Policy`: the attention kernel sees keys by ranges (`Range`), which `_place` in `sampler.py`
# and `units_of` in `running_units.py` fill for these policies. A policy that is not here runs eagerly, whatever its
# comparison is.
GRAPHED_POLICIES = ("full", "block", "block_causal", "window")
GRAPHED_SCORES = ("low_confidence", "random", "random_topk", "entropy", "margin")  # `_score` in proposal_kernel.py
GRAPHED_UNMASKING = ("fixed", "threshold", "factor", "entropy_bound")  # `_commit` in commit_kernels.py


def why_not(model: Any, request: Request) -> str | None:
    """Why a request cannot run as CUDA graphs, in one line; None if it can."""
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if request.policy not in GRAPHED_POLICIES:
        return f"attention policy {request.policy} has no graph; {', '.join(GRAPHED_POLICIES)} have one"
    return unknown_knob(request.params) or unsupported(model)


def unknown_knob(params: DecodeParams) -> str | None:
    """The first knob that the step programs do not have, in one line."""
    for name, known in (("remasking", GRAPHED_SCORES), ("unmask", GRAPHED_UNMASKING)):
        value = getattr(params, name)
        if value not in known:
            return f"{name}={value} has no graph; {', '.join(known)} have one"
    unknown = (name for name in ("edit_threshold", "remask") if getattr(params, name))
    return next((f"{name}={getattr(params, name)} has no graph; 0 has one" for name in unknown), None)
