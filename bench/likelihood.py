"""Likelihoods of answers: LLaDA's published loop and this project's batches, on the same weights, in one run.

    python -m bench.likelihood [--device cpu|cuda] [--repeats N] [--requests 64] [--rounds 32] [--questions N]

The published function (`get_log_likelihood` of LLaDA's repository) takes one prompt and answer at a time, 16 masks of
it in a forward pass, with the logits of all positions. Weights and texts are random. The two take turns. On a CPU the
published function is timed on a few requests, from short to long, and the rest is reckoned from their tokens.
--questions N also times a multiple-choice task of N questions with four answers each, by ours alone.
"""

import argparse
import functools
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import MIB, cuda_peak, seconds
from bench.sample import MASK, TEXT, make_model
from qwen3llada.evaluation.likelihood import Bound, log_likelihood

PROMPT, SHORTEST, LONGEST = 64, 16, 64  # tokens
PUBLISHED_BATCH = 16  # masks in a forward pass, the published default
TIMED = {"cpu": 4, "cuda": None}  # requests that the published function is timed on; None: all
Pair = tuple[list[int], list[int]]


def forward_process(batch: Tensor, prompt: int) -> tuple[Tensor, Tensor]:
    """As published: stratified mask counts from a random start, positions without replacement. [B, L] each."""
    rows, length = batch.shape
    target = length - prompt
    k = torch.randint(1, target + 1, ())
    x = torch.round(torch.linspace(float(k), k + (rows - 1) * (target / rows), steps=rows, device=batch.device)).long()
    x = ((x - 1) % target) + 1
    is_mask = torch.arange(target, device=batch.device).repeat(rows, 1) < x.unsqueeze(1)
    for i in range(rows):
        is_mask[i] = is_mask[i][torch.randperm(target)]
    is_mask = torch.cat((torch.zeros(rows, prompt, dtype=torch.bool, device=batch.device), is_mask), dim=1)
    return torch.where(is_mask, MASK, batch), (x / target).unsqueeze(1).repeat(1, length)


@torch.no_grad()
def published(model, pair: Pair, rounds: int) -> float:
    """LLaDA's `get_log_likelihood` without guidance: log p(answer | prompt) of one pair."""
    prompt, answer = pair
    rows = min(PUBLISHED_BATCH, rounds)
    tokens = torch.tensor([[*prompt, *answer]], device=model.device).repeat(rows, 1)
    losses = []
    for _ in range(rounds // rows):
        noisy, p_mask = forward_process(tokens, len(prompt))
        mask_index = noisy == MASK
        logits = model(input_ids=noisy).logits
        loss = F.cross_entropy(logits[mask_index], tokens[mask_index], reduction="none") / p_mask[mask_index]
        losses.append((loss.sum() / rows).item())
    return -sum(losses) / len(losses)


def make_pairs(count: int, prompt: int, shortest: int, longest: int) -> list[Pair]:
    """Random requests; the answers' lengths are spread evenly."""
    rng = np.random.default_rng(0)
    lengths = np.linspace(shortest, longest, count).round().astype(int)
    rng.shuffle(lengths)
    return [(rng.integers(0, TEXT, prompt).tolist(), rng.integers(0, TEXT, n).tolist()) for n in lengths]


def ours(model, pairs: list[Pair], rounds: int, batch_tokens: int) -> list[Bound]:
    return log_likelihood(model, pairs, policy="full", rounds=rounds, batch_tokens=batch_tokens)


def compare(model, pairs: list[Pair], given: argparse.Namespace) -> None:
    """Time both in turns, and print a table and how far the estimates are apart."""
    device = model.device
    few = TIMED[device.type] or len(pairs)
    chosen = [pairs[i] for i in sorted(range(len(pairs)), key=lambda i: len(pairs[i][1]))[:: max(1, len(pairs) // few)]]
    scale = sum(len(p) + len(a) for p, a in pairs) / sum(len(p) + len(a) for p, a in chosen)

    def loop() -> list[float]:
        return [published(model, pair, given.rounds) for pair in chosen]

    def batched() -> list[Bound]:
        return ours(model, pairs, given.rounds, given.batch_tokens)

    results: dict[str, list] = {}

    def kept(name: str, call) -> None:
        results[name] = call()

    if device.type == "cuda":  # kernels are compiled and chosen at the first call
        kept("published", loop), kept("ours", batched)
    times: dict[str, list[float]] = {"published": [], "ours": []}
    work: dict[str, list[float]] = {"published": [], "ours": []}
    for _ in range(given.repeats):
        for name, call, factor in (("published", loop, scale), ("ours", batched, 1.0)):
            begin = time.process_time()
            times[name].append(seconds(functools.partial(kept, name, call), device) * factor)
            work[name].append((time.process_time() - begin) * factor)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{len(pairs)} requests, prompt {PROMPT}, answers {SHORTEST} to {LONGEST}, {given.rounds} rounds, {model.dtype}"
    )
    for name, value in medians.items():
        call = loop if name == "published" else batched
        peak = f"{cuda_peak(call, device) / MIB:9.0f} MiB peak" if device.type == "cuda" else ""
        print(f"  {name:10} {value:9.3f} s {len(pairs) / value:9.2f} requests/s {peak}", flush=True)
    ratio = medians["published"] / medians["ours"]
    processor = statistics.median(work["published"]) / statistics.median(work["ours"])
    print(
        f"  ours is {ratio:.1f} times as fast"
        + (f", {processor:.1f} in processor time" if device.type == "cpu" else "")
    )
    mine, theirs = [results["ours"][pairs.index(pair)] for pair in chosen], results["published"]
    off = [abs(bound.nats - other) / bound.standard_error for bound, other in zip(mine, theirs, strict=True)]
    print(f"  estimates differ by {statistics.median(off):.2f} of our standard errors (median), {max(off):.2f} at most")


def multiple_choice(model, questions: int, given: argparse.Namespace) -> None:
    """Time a task of questions of 64 tokens with four answers of 4 to 16 each."""
    pairs = [
        (prompt, answer) for prompt, _ in make_pairs(questions, PROMPT, 1, 1) for _, answer in make_pairs(4, 1, 4, 16)
    ]
    value = seconds(lambda: ours(model, pairs, given.rounds, given.batch_tokens), model.device)
    print(f"{questions} questions x 4 answers, {given.rounds} rounds: {value:.1f} s ({value / 60:.2f} minutes)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=3, help="turns; medians are printed")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, help="of ours; by default 16,384 on a GPU and 2,048 on a CPU")
    parser.add_argument("--questions", type=int, default=0, help="of the multiple-choice task; 0 leaves it out")
    given = parser.parse_args()
    given.batch_tokens = given.batch_tokens or (16_384 if given.device == "cuda" else 2_048)
    model = make_model(given.device, torch.bfloat16 if given.device == "cuda" else torch.float32)
    if given.requests:
        compare(model, make_pairs(given.requests, PROMPT, SHORTEST, LONGEST), given)
    if given.questions:
        multiple_choice(model, given.questions, given)


if __name__ == "__main__":
    main()
