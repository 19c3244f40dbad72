"""Time to make micro-batches (noise and collation) on one loader worker: `python -m bench.batching`.

The budget is 5 % of a training step at 100,000 tokens per second.
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch

from qwen3llada.batches.loader import make_loader
from qwen3llada.batches.samples import Sample
from qwen3llada.batches.settings import BatchSettings
from qwen3llada.diffusion.corruption import NoiseParams

ROWS, LENGTH, VOCABULARY = 16, 4096, 151_669
TOKENS_PER_SECOND, SHARE_OF_STEP = 100_000, 0.05
REPEATS = 30
VARIANTS = {
    "mask": NoiseParams(),
    "contiguous spans": NoiseParams(mask_contiguous_region_prob=0.5),
    "random_replace": NoiseParams(noise_type="random_replace"),
}


class RandomTokens:
    """Packed sequences of random ids, in memory."""

    def __init__(self, samples: int) -> None:
        self.tokens = np.random.default_rng(0).integers(0, VOCABULARY, (samples, LENGTH), dtype=np.int32)
        self.lengths = np.full(samples, LENGTH)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.tokens[index])


def milliseconds_per_batch(noise: NoiseParams, workers: int) -> float:
    """Median time between micro-batches when nothing else computes, with one thread per worker."""
    settings = BatchSettings(
        noise=noise,
        seed=0,
        mask_token_id=VOCABULARY,
        micro_batch_size=ROWS,
        real_tokens=torch.arange(VOCABULARY),
        num_workers=workers,
    )
    loader = make_loader(RandomTokens(ROWS * REPEATS), settings, epoch=0)
    times = [time.perf_counter()]
    times.extend(time.perf_counter() for _ in loader)
    return float(np.median(np.diff(times))) * 1e3


def main() -> None:
    torch.set_num_threads(1)
    budget = SHARE_OF_STEP * ROWS * LENGTH / TOKENS_PER_SECOND * 1e3
    print(f"{ROWS} x {LENGTH} tokens; budget {budget:.1f} ms = {SHARE_OF_STEP:.0%} of a step")
    for name, noise in VARIANTS.items():
        measured = {f"{workers} workers": milliseconds_per_batch(noise, workers) for workers in (0, 1)}
        row = {key: round(value, 2) for key, value in measured.items()}
        print(f"{name:18s}", json.dumps({**row, "share of budget": round(max(measured.values()) / budget, 3)}))


if __name__ == "__main__":
    main()
