"""Muon for the matrices of the decoder layers, AdamW for embeddings, norms and biases, as one optimiser."""

from typing import Any

import torch


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) beside AdamW, each on its own groups.

    Both take the learning rate and the weight decay of AdamW: Muon's updates are scaled to the root mean square that
    AdamW's have, 0.2·sqrt(max(rows, columns)) (Liu et al., arXiv 2502.16982, equation 4).

    Args:
        groups: parameter groups; those with `muon: True` hold matrices alone.
        lr, betas, eps: AdamW's. Muon uses `lr`, and a momentum of its own, `MOMENTUM`.
    """

    MOMENTUM = 0.95  # with Nesterov's correction, as in the post

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        self._parts: list[torch.optim.Optimizer] = []
        named = [{**group, "muon": group.get("muon", False)} for group in groups]
        if matrices := [group for group in named if group["muon"]]:
            settings: dict[str, Any] = {"momentum": self.MOMENTUM, "adjust_lr_fn": "match_rms_adamw"}
            self._parts.append(torch.optim.Muon(matrices, lr=lr, **settings))
        if others := [group for group in named if not group["muon"]]:
            fused = others[0]["params"][0].device.type in ("cuda", "cpu", "mps")
            self._parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=fused))
        super().__init__([group for part in self._parts for group in part.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure, so no loss
        """One update of all parameters that have gradients. Raises ValueError if given a closure."""
        if closure is not None:
            raise ValueError("closure must be None: gradients are computed before the step")
        for part in self._parts:
            muon = isinstance(part, torch.optim.Muon)
            # Looked up in each step, since loading a state replaces both.
            part.param_groups = [group for group in self.param_groups if group["muon"] == muon]
            part.state = self.state
            part.step()
