"""The optimisers by name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import; the parameters need only the names of the optimisers
    import torch

Groups = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How to make an optimiser, and the state it keeps per parameter.

    build: (parameter groups, lr, betas, eps) -> optimiser. moments: number of moving averages per parameter.
    moment_bytes: bytes per element of one; None: the parameter's dtype. bitsandbytes: needs that package and a CUDA
    device. sharded: takes parameters that FSDP2 has sharded. matrices: treats the matrices of layers, whose group says
    `muon: True`, in its own way, with so many moving averages; None: like all others. unused: knobs of `OptimParams`
    without effect. unused_for_matrices: those that have none on the matrices of layers.
    """

    build: Callable[[Groups, float, tuple[float, float], float], torch.optim.Optimizer]
    moments: int
    moment_bytes: int | None = None
    bitsandbytes: bool = False
    sharded: bool = True
    matrices: int | None = None
    unused: Collection[str] = ()
    unused_for_matrices: Collection[str] = ()


def adamw(groups: Groups, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101); the fused kernel if torch has one for the device."""
    import torch

    fused = groups[0]["params"][0].device.type in ("cuda", "cpu", "mps")
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


def adamw8bit(groups: Groups, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """AdamW with 8-bit moments (Dettmers et al., arXiv 2110.02861)."""
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, lr=lr, betas=betas, eps=eps)


def lion8bit(groups: Groups, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Lion (Chen et al., arXiv 2302.06675) with an 8-bit moment. It divides by nothing, so `eps` is not used."""
    import bitsandbytes

    return bitsandbytes.optim.Lion8bit(groups, lr=lr, betas=betas)


def muon(groups: Groups, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Muon for matrices, AdamW for all else (see `MuonAndAdamW`)."""
    from qwen3llada.training.start.muon import MuonAndAdamW

    return MuonAndAdamW(groups, lr, betas, eps)


OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": Optimizer(build=adamw, moments=2),
    "adamw8bit": Optimizer(build=adamw8bit, moments=2, moment_bytes=1, bitsandbytes=True, sharded=False),
    "lion8bit": Optimizer(build=lion8bit, moments=1, moment_bytes=1, bitsandbytes=True, sharded=False, unused=("eps",)),
    "muon": Optimizer(build=muon, moments=2, matrices=1, sharded=False, unused_for_matrices=("betas", "eps")),
}
FALL_BACK = "adamw"  # replaces bitsandbytes' optimisers without a GPU
