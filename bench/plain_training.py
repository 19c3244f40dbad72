"""The training step that ours is compared with."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bench.random_run import DEVICE, FIRST_WORD, MASK


def plain_step(folder: Path, rows: int, length: int) -> Callable[[], None]:
    """The published recipe: eager model, dense additive mask, float32 logits of everything."""
    from qwen3llada import Qwen3LLadaForMaskedLM

    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    model = Qwen3LLadaForMaskedLM.from_pretrained(folder / "model", dtype=dtype, attn_implementation="eager")
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.randint(FIRST_WORD, model.config.vocab_size, (rows, length), device=DEVICE)
    bias = torch.zeros(rows, 1, length, length, dtype=dtype, device=DEVICE)

    def step() -> None:
        t = torch.rand(rows, device=DEVICE) * (1 - 1e-3) + 1e-3
        masked = torch.rand(rows, length, device=DEVICE) < t[:, None]
        noisy = torch.where(masked, MASK, tokens)
        logits = model(input_ids=noisy, attention_mask=bias).logits.float()
        losses = nn.functional.cross_entropy(logits[masked], tokens[masked], reduction="none")
        (losses / t[:, None].expand_as(masked)[masked]).sum().div(tokens.numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
