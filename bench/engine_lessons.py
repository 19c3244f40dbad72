"""A model of Qwen3-0.6B's shapes with clear margins, in a minute on a GPU: it learns a few random sequences by heart.

With random weights the most likely tokens are nearly tied everywhere, so rounding decides most of them. Here it decides
few. Learning stops early, so that confidences still differ between positions.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.engine_models import DEVICE, MASK, random_model, write_tokenizer

LESSONS, LENGTH = 2, 192  # sequences and their tokens, a multiple of all block lengths
VIEWS = 12  # maskings of each lesson in a step
ENOUGH = 0.25  # loss, in nats a masked token, at which learning stops
AVERAGE = 10  # steps
BLOCKS = (4, 32)


def lessons() -> list[list[int]]:
    """The sequences [LESSONS][LENGTH], ids below 100,000."""
    draw = random.Random(1)
    return [[draw.randrange(100_000) for _ in range(LENGTH)] for _ in range(LESSONS)]


def write_learned(folder: Path, seconds: float, **sizes: Any) -> dict[str, float]:
    """Train a random model for at most `seconds`, and write it in bfloat16. Returns steps and the last loss."""
    torch.manual_seed(0)
    model = random_model(**sizes)
    begin, losses = time.perf_counter(), list[float]()
    for loss in learn(model):
        losses.append(loss)
        recent = sum(losses[-AVERAGE:]) / AVERAGE
        if (len(losses) >= AVERAGE and recent < ENOUGH) or time.perf_counter() - begin > seconds:
            break
    model.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)
    return {"steps": len(losses), "loss": sum(losses[-AVERAGE:]) / len(losses[-AVERAGE:])}


def learn(model: Any, rate: float = 3e-4, warm_up: int = 20) -> Iterator[float]:
    """Training steps without end, of all blocks of all lessons; yields the loss of each."""
    known, draw = torch.tensor(lessons(), device=DEVICE).repeat(VIEWS, 1), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warm_up))
    model.train()
    while True:
        loss = blocks_loss(model, known, draw.choice(BLOCKS))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        yield loss.item()


def blocks_loss(model: Any, known: Tensor, block: int) -> Tensor:
    """Mean cross-entropy of masked tokens of `known` [B, L]; each block of each row has a share of masks of its own.

    A pass over [masked | clean]: a masked block sees itself and the clean blocks before it (BD3-LM, arXiv 2503.09573).
    """
    rows, length = known.shape
    share = torch.rand(rows, length // block, 1, device=known.device).expand(-1, -1, block).flatten(1)
    masked = torch.rand(rows, length, device=known.device) <= share
    tokens = torch.cat([known.masked_fill(masked, MASK), known], 1)
    places = torch.arange(length, device=known.device)
    number = (places // block).repeat(2)
    clean = torch.arange(2 * length, device=known.device) >= length
    earlier = clean[None, :] & (number[None, :] < number[:, None])
    own = (clean[None, :] == clean[:, None]) & (number[None, :] == number[:, None])
    visible = (earlier | own)[None, None].expand(rows, 1, -1, -1)
    positions = places.repeat(2)[None].expand(rows, -1)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
        passed = model.model(input_ids=tokens, attention_mask=visible, position_ids=positions)
        logits = model.get_output_embeddings()(passed.last_hidden_state[:, :length][masked])
    return torch.nn.functional.cross_entropy(logits.float(), known[masked])
