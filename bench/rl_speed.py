"""Post-training at the shapes of Qwen3-0.6B: how much of a batch goes to rollouts, and how much to training.

    python -m bench.rl_speed                    a GPU: 64 rollouts of 256 tokens; a CPU: a tiny model, to try it
    python -m bench.rl_speed --policies block_causal --methods trace --kl 0.01        also the first model's passes
    python -m bench.rl_speed --seconds 130 --out FILE                   start no row later than that; results as JSON

The steps are those of the stage `rl`. Weights are random: an EOS is one of 151,936 tokens, so answers practically never
end early, and every rollout has its full length. Rewards are 0 and 1 in turn, so every rollout is trained. The first
batch compiles and is left out, like any other that captures graphs. A row that fails prints its error, and the next
one runs.
"""

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.measure import synchronize
from qwen3llada.artifacts import write_json
from qwen3llada.post_training import rollouts
from qwen3llada.post_training.params import RlParams
from qwen3llada.post_training.reference import Reference
from qwen3llada.post_training.rewards import Sample
from qwen3llada.post_training.source import RolloutSource
from qwen3llada.post_training.task import Rewarded
from qwen3llada.training.loop import training_steps
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest
from qwen3llada.training.watch.peak_memory import PeakMemory
from qwen3llada.training.watch.step_stats import StepResult

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Lengths in tokens, and counts."""

    prompt: int = 128
    answer: int = 256
    block: int = 32
    steps: int = 64  # passes of the sampler for an answer
    group: int = 8
    prompts: int = 8
    rows: int = 32  # of a micro-batch


SMALL = Sizes(prompt=16, answer=32, block=8, steps=16, group=4, prompts=2, rows=8)
_numbers = itertools.count()


def in_turn(sample: Sample) -> float:
    """A reward of 0 and 1 in turn."""
    return float(next(_numbers) % 2)


class Watched:
    """A function, with the time that its calls took and the last result."""

    def __init__(self, function: Callable[..., Any], device: torch.device):
        self.function, self.device, self.seconds, self.last = function, device, 0.0, None

    def __call__(self, *args: Any, **named: Any) -> Any:
        synchronize(self.device)
        began = time.perf_counter()
        self.last = self.function(*args, **named)
        synchronize(self.device)
        self.seconds += time.perf_counter() - began
        return self.last

    def take(self) -> float:
        """Seconds since the last call of this."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def params_of(folder: Path, policy: str, method: str, sizes: Sizes, *, kl: float, bf16: bool) -> RlParams:
    """The section `rl` of a row. Under `full` a pass of `trace` takes the steps of a block, as under `block_causal`."""
    steps_of_block = max(1, sizes.steps * sizes.block // sizes.answer)
    return RlParams.model_validate(
        {
            "model": folder / "model",
            "data": folder / "prompts",
            "dst": folder / "trained",
            "output_dir": folder / "work",
            "reports": folder / "reports",
            "method": method,
            "shrink": steps_of_block if policy == "full" else 1,
            "group_size": sizes.group,
            "prompts_per_batch": sizes.prompts,
            "kl": kl,
            "rewards": [{"name": "bench.rl_speed:in_turn"}],
            "rollout": {"steps": sizes.steps, "gen_length": sizes.answer, "block_length": sizes.block},
            "attention": {"policy": policy, "block_length": sizes.block},
            "micro_batch_size": sizes.rows,
            "max_length": sizes.prompt + sizes.answer,
            "pad_to_multiple_of": 128 if bf16 else 8,
            "max_steps": 1000,
            "bf16": bf16,
            "deterministic": False,
            "resume_from": "",
        }
    )


def parts(
    result: StepResult, source: RolloutSource, seconds: float, *, sampler: float, first_model: float
) -> dict[str, float]:
    """The seconds of a batch, and its tokens: of answers, and of prompt and answer in each trained pass."""
    made = result.figures["rollout_seconds"]
    return {
        "batch": seconds,
        "rollouts": made,
        "sampler": sampler,
        "first_model": first_model,
        "training": seconds - made - first_model,
        "answer_tokens": sum(len(rollout.tokens) for rollout in source.work.rollouts),
        "trained_tokens": result.tokens,
    }


def measure(params: RlParams, batches: int, row_seconds: float) -> dict[str, Any]:
    """Medians over `batches` batches after the first, or over as many as begin within `row_seconds`.

    A batch in which graphs of the layers are captured is left out as well.
    """
    began, found = time.perf_counter(), []
    first, captured = 0.0, 0
    run = start(params, seed=0, template="plain", task=Rewarded(params))
    source, peak = run.data, PeakMemory(run.device, run.graphs)
    assert isinstance(source, RolloutSource)
    sampler, first_model = (Watched(f, run.device) for f in (rollouts.generate, Reference.remember))
    passes_of_first_model = patch.object(Reference, "remember", lambda *args: first_model(*args))
    with patch.object(rollouts, "generate", sampler), passes_of_first_model:
        synchronize(run.device)
        last = time.perf_counter()
        for result in training_steps(run, StopRequest()):
            result.read()
            synchronize(run.device)
            now = time.perf_counter()
            one = parts(result, source, now - last, sampler=sampler.take(), first_model=first_model.take())
            print(f"  batch {result.step}: " + ", ".join(f"{k} {v:.5g}" for k, v in one.items()), flush=True)
            before, captured = captured, run.graphs.recorder.recorded if run.graphs else 0
            if result.step == 1:
                first = one["batch"]
            elif captured == before:
                found.append(one)
            peak.read()
            if len(found) == batches or (found and now - began > row_seconds):
                break
            last = time.perf_counter()
    medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
    facts = {"first_batch": first, "batches": len(found), "peak": peak.read() / GIB}
    used = {"backend": sampler.last.backend, "passes": sampler.last.forward_passes, "compiled": run.compiled}
    return medians | facts | used | {"row_seconds": time.perf_counter() - began}


def attempt(make: Callable[[], RlParams], batches: int, row_seconds: float) -> dict[str, Any]:
    """`measure`, or the error."""
    from bench.random_run import clean

    clean()
    try:
        return measure(make(), batches, row_seconds)
    except Exception as error:  # whatever a compiler or a kernel raises: the other rows are wanted all the same
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def table(results: list[dict[str, Any]]) -> None:
    print("| policy | method | rollouts | of it the sampler | first model | training | share of rollouts |", end="")
    print(" rollouts, tokens/s | training, tokens/s | peak | sampler's passes |\n|" + "---|" * 11)
    for row in results:
        head = f"| `{row['policy']}` | `{row['method']}` |"
        if "error" in row:
            print(head, row["error"], "|")
            continue
        times = " | ".join(f"{row[key]:.2f} s" for key in ("rollouts", "sampler", "first_model", "training"))
        speeds = (row["answer_tokens"] / row["rollouts"], row["trained_tokens"] / row["training"])
        rates = " | ".join(f"{speed:,.0f}" for speed in speeds)
        shares = f"{row['rollouts'] / row['batch']:.0%} | {rates} | {row['peak']:.1f} GiB"
        print(head, f"{times} | {shares} | {row['passes']}, {row['backend']} |")


def write_inputs(folder: Path, sizes: Sizes, config: dict[str, Any]) -> None:
    """A model with random weights, and random prompts. No reward reads the answers that come with them."""
    from bench.random_run import write_data, write_model

    write_model(folder, config)
    write_data(folder, config, 64, 2 * sizes.prompt, prompts="prompts")
    shutil.copytree(folder / "prompts" / "train", folder / "prompts" / "heldout")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="*", default=["block_causal", "full"])
    parser.add_argument("--methods", nargs="*", default=["trace", "random_mask"])
    parser.add_argument("--kl", type=float, default=0.0, help="above 0: also passes of the first model")
    parser.add_argument("--batches", type=int, default=4, help="after the first")
    parser.add_argument("--row-seconds", type=float, default=30.0, help="of a row: begin no batch later, but for one")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no row later")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--rows", type=int, help="of a micro-batch")
    parser.add_argument("--out", type=Path, help="write the results there as JSON, after each row")
    args = parser.parse_args(argv)
    began = time.perf_counter()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for devices, as the next import does
    from bench.random_run import DEVICE, QWEN3_0_6B, TINY

    gpu = DEVICE.type == "cuda"
    sizes, config = (Sizes(), QWEN3_0_6B) if gpu else (SMALL, TINY)
    sizes = replace(sizes, rows=args.rows or sizes.rows)
    results: list[dict[str, Any]] = []
    print(f"{torch.cuda.get_device_name() if gpu else 'CPU'}, torch {torch.__version__}, {sizes}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), sizes, config)
        for policy, method in itertools.product(args.policies, args.methods):
            if time.perf_counter() - began > args.seconds:
                print(f"{policy} {method}: left out, {args.seconds:.0f} s are over", flush=True)
                continue
            print(f"{policy} {method}, after {time.perf_counter() - began:.0f} s", flush=True)
            make = partial(params_of, Path(folder), policy, method, sizes, kl=args.kl, bf16=gpu)
            results.append({"policy": policy, "method": method} | attempt(make, args.batches, args.row_seconds))
            print(f"  {results[-1].get('error', 'done')}", flush=True)
            if args.out:
                write_json(args.out, {"sizes": vars(sizes), "torch": torch.__version__, "rows": results})
    print("Old log-probabilities have no time of their own: they are those of the first update's forward pass.")
    table(results)


if __name__ == "__main__":
    main()
