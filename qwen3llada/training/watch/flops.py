"""FLOPs of a training step, and the device's peak rate."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Dense bf16 matrix rate in TFLOP/s from the vendors' data sheets, without sparsity. The first matching name applies.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 125.0,
    "RTX 6000 Ada": 364.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


@dataclass(frozen=True, kw_only=True)
class FlopCounter:
    """FLOPs of forward and backward passes. A multiply-add counts as two.

    All executed operations count, including padding and the recomputation of gradient checkpointing.

    In the forward pass a position costs 2 FLOPs per weight of the body's linear layers. The backward pass costs the
    same for the gradient of the layer's input and, if the weight is trained, again for the gradient of the weight. Only
    corrupted positions reach the vocabulary projection. Attention multiplies queries with keys and weights with values:
    4·A for each pair that its kernel computes, A = heads · head dimension. Its backward pass costs 2.5 times as much,
    because it recomputes the scores (Dao, arXiv 2307.08691, section 4.1).
    """

    body: int  # weights of the body's linear layers
    trained_body: int  # of these, the weights that get a gradient
    head: int  # weights of the vocabulary projection
    trained_head: bool
    attention: int  # layers · heads · head dimension
    checkpointed: bool

    def step(self, tokens: int, *, pairs: int, corrupted: int) -> float:
        """FLOPs for `tokens` columns over all rows, clean copies included, of which `corrupted` are in the loss.

        pairs: query-key pairs that are computed in one head of one layer, over all rows.
        """
        forward = 2 * self.body * tokens
        attention = 4 * self.attention * pairs
        body = 2 * forward + 2 * self.trained_body * tokens + 3.5 * attention
        again = (forward + attention) if self.checkpointed else 0
        return float(body + again + 2 * (2 + self.trained_head) * self.head * corrupted)


def flop_counter(model: Any, *, checkpointed: bool) -> FlopCounter:
    """The counter for a Qwen3LLadaForMaskedLM, including adapters."""
    head = model.get_output_embeddings()
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    config = model.config
    return FlopCounter(
        body=sum(_weights(w) for w in linear),
        trained_body=sum(_weights(w) for w in linear if w.requires_grad),
        head=_weights(head.weight),
        trained_head=head.weight.requires_grad,
        attention=config.num_hidden_layers * config.num_attention_heads * config.head_dim,
        checkpointed=checkpointed,
    )


def peak_flops(device: torch.device, given_tflops: float) -> float | None:
    """Peak FLOP/s of the device: the given value, else from the table, else None (unknown)."""
    if given_tflops:
        return given_tflops * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for known, tflops in PEAK_TFLOPS.items() if known in name), None)


def _weights(weight: torch.Tensor) -> int:
    """Number of weights; also for 4-bit weights, which are stored two per byte."""
    shape = getattr(getattr(weight, "quant_state", None), "shape", None) or weight.shape
    return torch.Size(shape).numel()
