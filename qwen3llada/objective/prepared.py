"""A micro-batch as tensors of the objective: prepared on the CPU, moved to the device at once."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Prepared(NamedTuple):
    """What the objective needs of a micro-batch (see `copies` for B, S, V and C), N of its positions corrupted."""

    tokens: Tensor  # [B, S] int64
    targets: Tensor  # [B, V·C] int64
    token_weights: Tensor  # [B, V·C] float32, before division by the step's denominator
    positions: Tensor  # [N] int64, corrupted ones in the flattened [B, V·C]
    levels: Tensor  # [N] float32, noise level t of each
    position_ids: Tensor | None  # [1 or B, S] int64
    blocks: Tensor | None  # [B, S] int64, block numbers; None where they follow from the columns alone
    valid: Tensor | None  # [B, S] bool
    prompt_lengths: Tensor  # [B] int64
    documents: Tensor | None  # [B, S] int64
    corrupted: int  # C where there is a clean copy, else 0
    views: int
    block_length: int
    pairs: int  # of a query and a key that are multiplied, in each head of a layer, on average over the layers


def to_device(prepared: Prepared, device: torch.device) -> Prepared:
    """The tensors on `device`, through page-locked memory where that lets the host go on at once."""
    if device.type == "cpu":
        return prepared
    pin = device.type == "cuda"

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (value.pin_memory() if pin else value).to(device, non_blocking=pin)

    return Prepared._make(map(moved, prepared))
