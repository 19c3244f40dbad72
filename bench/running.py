"""The running batch without a server: `python -m bench.running [--rows 128] [--steps 32] [--seconds 10] [--profile]`.

Rows of mixed lengths (those of `bench.engines load`) enter as others end, so that the batch is always full. Weights are
random, of Qwen3-0.6B's shapes in bfloat16 on a GPU, small on a CPU. Beside it: one batch of as many equal rows.
"""

import argparse
import cProfile
import pstats
import random
import time
from collections.abc import Iterable
from typing import Any

import torch

from bench.engine_load import ANSWERS, BLOCK, PROMPTS
from bench.measure import synchronize
from bench.sample import MASK, TEXT, make_model
from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.request import Request, make_request
from qwen3llada.sampling.running_batch import RunningBatch
from qwen3llada.sampling.running_row import RunningRow
from qwen3llada.sampling.sampler import generate


def request(model: Any, number: int, steps: int) -> Request:
    """The request with this number, the same in every run, with `steps` denoising steps a block."""
    draw = random.Random(number)
    prompt, answer = draw.choice(PROMPTS), draw.choice(ANSWERS)
    tokens = [draw.randrange(TEXT) for _ in range(prompt)]
    blocks = -(-(prompt % BLOCK + answer) // BLOCK)
    params = DecodeParams(gen_length=answer, steps=blocks * steps, block_length=BLOCK)
    return make_request(model, ([tokens], [[MASK] * answer]), params, noise.row_keys(number, [0]), (), device="cpu")


def committed(rows: Iterable[RunningRow]) -> int:
    """Tokens of these rows' answers that are known."""
    return sum(int((row.tokens[0, row.answer_columns] != MASK).sum()) for row in rows)


def fill(
    model: Any, batch: RunningBatch, running: set[RunningRow], rows: int, steps: int, seconds: float, first: int
) -> dict[str, Any]:
    """Keep `rows` rows in the batch for so long; `running` are those in it. The first new one has number `first`."""
    number, passes, steps_made, longest, entering = first, batch.passes, 0, 0.0, 0.0
    settled = -committed(running)
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        at = time.perf_counter()
        while len(batch) < rows:
            running.add(batch.enter(request(model, number, steps)))
            number += 1
        entering += time.perf_counter() - at
        for row in batch.step():
            if row.finished:
                running.discard(row)
                settled += committed([row])
        steps_made += 1
        longest = max(longest, time.perf_counter() - at)
    taken = time.perf_counter() - begin
    settled += committed(running)
    return {
        "tokens/s": round(settled / taken),
        "answers entered": number - first,
        "steps/s": round(steps_made / taken, 1),
        "passes a step": round((batch.passes - passes) / steps_made, 2),
        "ms a step": round(taken / steps_made * 1e3, 2),
        "of it entering": round(entering / steps_made * 1e3, 2),
        "longest step in ms": round(longest * 1e3),
    }


def alone(model: Any, rows: int, steps: int) -> float:
    """Tokens per second of one batch of so many rows, 128 tokens of prompt and 256 of answer."""
    params = DecodeParams(gen_length=256, steps=256 // BLOCK * steps, block_length=BLOCK)
    prompts = torch.randint(TEXT, (rows, 128), generator=torch.Generator().manual_seed(0)).tolist()
    for _ in range(2):
        begin = time.perf_counter()
        generate(model, prompts, params, eos_token_ids=())
        synchronize(model.device)
    return rows * 256 / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32, help="denoising steps of a block of 32")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--profile", action="store_true", help="where the host's time goes")
    args = parser.parse_args()
    model = make_model(args.device, torch.bfloat16 if args.device == "cuda" else torch.float32)
    model.config.attention_policy = "block_causal"
    batch, given = RunningBatch(model), (args.rows, args.steps, args.seconds)
    running = set[RunningRow]()
    print("graphs are captured:", fill(model, batch, running, *given, first=0), flush=True)
    print("then:", fill(model, batch, running, *given, first=10**6), flush=True)
    if args.profile:
        profile = cProfile.Profile()
        profile.runcall(fill, model, batch, running, *given, first=2 * 10**6)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    batch.close()
    print(f"one batch of {args.rows}: {alone(model, args.rows, args.steps):,.0f} tokens/s")


if __name__ == "__main__":
    main()
