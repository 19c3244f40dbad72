"""The published training step, as a baseline."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.random_run import DEVICE, FIRST_WORD, MASK


def plain_step(folder: Path, rows: int, length: int, *, block_length: int = 0) -> Callable[[], None]:
    """The published recipe: not compiled, Transformers' eager attention with a dense mask, float32 logits everywhere.

    `block_length` above 0: block diffusion over [corrupted | clean] with such a mask, one noise level per block. Its
    attention is torch's `scaled_dot_product_attention`, because the scores of Transformers' eager attention over both
    copies do not fit on a card.
    """
    from qwen3llada import Qwen3LLadaForMaskedLM

    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    attention = "sdpa" if block_length else "eager"
    model = Qwen3LLadaForMaskedLM.from_pretrained(folder / "model", dtype=dtype, attn_implementation=attention)
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.randint(FIRST_WORD, model.config.vocab_size, (rows, length), device=DEVICE)
    bias = torch.zeros(rows, 1, length, length, dtype=dtype, device=DEVICE)
    positions = None
    if block_length:
        bias = _copies_bias(length, block_length, dtype).expand(rows, 1, -1, -1)
        positions = torch.arange(length, device=DEVICE).repeat(2)[None]

    def step() -> None:
        levels = length // block_length if block_length else 1
        t = (torch.rand(rows, levels, device=DEVICE) * (1 - 1e-3) + 1e-3).repeat_interleave(length // levels, 1)
        masked = torch.rand(rows, length, device=DEVICE) < t
        noisy = torch.where(masked, MASK, tokens)
        inputs = torch.cat([noisy, tokens], 1) if block_length else noisy
        logits = model(input_ids=inputs, attention_mask=bias, position_ids=positions).logits[:, :length].float()
        losses = nn.functional.cross_entropy(logits[masked], tokens[masked], reduction="none")
        (losses / t[masked]).sum().div(tokens.numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _copies_bias(length: int, block_length: int, dtype: torch.dtype) -> Tensor:
    """The additive mask (0 or -inf) of [corrupted | clean]: [1, 1, 2·length, 2·length]."""
    column = torch.arange(2 * length, device=DEVICE)
    clean, block = column >= length, column % length // block_length
    query, key = block[:, None], block[None]
    own = ~clean[:, None] & ~clean[None] & (query == key)
    earlier = clean[None] & torch.where(clean[:, None], key <= query, key < query)
    return torch.zeros((), dtype=dtype, device=DEVICE).masked_fill(~(own | earlier), -torch.inf)[None, None]
