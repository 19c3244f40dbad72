"""Sampling: LLaDA's published algorithm and this project's sampler on the same weights.

    python -m bench.sample [--device cpu|cuda] [--repeats N]
    python -m bench.sample --only batch8 long8 policies8    rows of ours alone on a GPU; without names, all of them
    python -m bench.sample --profile long8                  where the time of a row, or of a policy at batch 8, goes

Weights and prompts are random, and no answer ends early. Every step of the published algorithm takes the same time, so
only its first steps are timed and the total is extrapolated. Ours is timed from prompts to answers. The two take turns.
--agreement counts the answer tokens that are equal.
"""

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.decoding import CASES, POLICIES, ROWS, run_profile, run_rows
from bench.measure import MIB, cuda_peak, seconds, synchronize
from qwen3llada.modeling.modeling_qwen3llada import Qwen3LLadaConfig, Qwen3LLadaForMaskedLM
from qwen3llada.sampling.sampler import Generation, SampleParams, generate

VOCABULARY, MASK = 151_936, 151_669  # Qwen3's embedding, and its first free row
TEXT = 151_643  # lower ids are text
TIMED_STEPS = {"cpu": 3, "cuda": 32}  # of the published algorithm


class Setting(NamedTuple):
    """Sizes of prompts and answers."""

    name: str
    batch: int
    prompt: int
    gen_length: int
    block_length: int
    steps: int


OURS: dict[str, dict[str, Any]] = {
    "full": {"block_attention": False},
    "block": {"block_attention": True},
    "parallel": {"block_attention": True, "parallel_blocks": True},
}
SETTINGS = {
    "cpu": [Setting("2 × (128 + 64), blocks of 16", 2, 128, 64, 16, 64)],
    "cuda": [
        Setting("1 × (128 + 256), blocks of 32", 1, 128, 256, 32, 256),
        Setting("8 × (128 + 256), blocks of 32", 8, 128, 256, 32, 256),
    ],
}


def make_model(device: str, dtype: torch.dtype) -> Any:
    """A model with random weights: Qwen3-0.6B's shapes on a GPU, a small model with its vocabulary on a CPU."""
    big = device == "cuda"
    config = Qwen3LLadaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1024 if big else 256,
        intermediate_size=3072 if big else 768,
        num_hidden_layers=28 if big else 4,
        num_attention_heads=16 if big else 4,
        num_key_value_heads=8 if big else 2,
        head_dim=128 if big else 64,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        mask_token_id=MASK,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return Qwen3LLadaForMaskedLM(config).to(dtype).eval()


@torch.no_grad()
def published(model: Any, prompt: Tensor, setting: Setting) -> Iterator[Tensor]:
    """LLaDA's `generate` as commonly published, greedy. Yields the canvas [B, L] after each step.

    Each step computes the whole canvas with all its logits, softmax in float64, and commits tokens in a loop over rows.
    """
    x = torch.full((len(prompt), setting.prompt + setting.gen_length), MASK, device=prompt.device)
    x[:, : setting.prompt] = prompt
    blocks = setting.gen_length // setting.block_length
    steps = setting.steps // blocks
    for block in range(blocks):
        end = setting.prompt + (block + 1) * setting.block_length
        masks = (x[:, end - setting.block_length : end] == MASK).sum(1, keepdim=True)
        transfer = (masks // steps).expand(-1, steps) + (torch.arange(steps, device=x.device) < masks % steps)
        for step in range(steps):
            mask_index = x == MASK
            logits = model(input_ids=x).logits
            logits[..., MASK] = -torch.inf  # random weights would propose the mask token, which is no answer
            x0 = logits.argmax(-1)
            p = torch.softmax(logits.double(), -1)
            x0_p = p.gather(-1, x0[..., None]).squeeze(-1)
            x0_p[:, end:] = -torch.inf
            x0 = torch.where(mask_index, x0, x)
            confidence = torch.where(mask_index, x0_p, -torch.inf)
            chosen = torch.zeros_like(mask_index)
            for row in range(len(x)):
                chosen[row, confidence[row].topk(int(transfer[row, step])).indices] = True
            x[chosen] = x0[chosen]
            yield x


def params_of(setting: Setting, **given: Any) -> SampleParams:
    return SampleParams(steps=setting.steps, gen_length=setting.gen_length, block_length=setting.block_length, **given)


def compare(model: Any, setting: Setting, repeats: int) -> None:
    """Time the published algorithm and ours in turns. Prints a table."""
    device = model.device
    prompt = torch.randint(TEXT, (setting.batch, setting.prompt), device=device)
    timed = TIMED_STEPS[device.type]

    def first_steps() -> None:
        for _ in itertools.islice(published(model, prompt, setting), timed):
            pass

    variants = {name: params_of(setting, **given) for name, given in OURS.items()}
    calls: dict[str, Callable[[], Generation]] = {
        name: functools.partial(generate, model, prompt, given, eos_token_ids=()) for name, given in variants.items()
    }
    first_call = {name: wall(call, device) for name, call in calls.items()}
    first_steps()
    times: dict[str, list[float]] = {name: [] for name in ("published", *calls)}
    work: dict[str, list[float]] = {name: [] for name in times}
    scale = {"published": setting.steps / timed}
    for _ in range(repeats):
        for name, call in {"published": first_steps, **calls}.items():
            begin = time.process_time()
            times[name].append(seconds(call, device) * scale.get(name, 1))
            work[name].append((time.process_time() - begin) * scale.get(name, 1))
    medians = {name: statistics.median(values) for name, values in times.items()}

    tokens = setting.batch * setting.gen_length
    print(f"\n{setting.name}, {setting.steps} steps")
    if device.type == "cpu":  # hardly affected by other load on the machine
        ratios = {name: statistics.median(work["published"]) / statistics.median(work[name]) for name in calls}
        print("  processor time, times less:", ", ".join(f"{name} {ratio:.1f}x" for name, ratio in ratios.items()))
    print(
        f"  {'':12} {'tokens/s':>10} {'faster':>8} {'passes':>7} {'ms a pass':>10} {'peak MiB':>9} {'first call':>11}"
    )
    for name, value in medians.items():
        generation = calls[name]() if name in calls else None
        passes = generation.forward_passes if generation else setting.steps
        peak = cuda_peak(calls.get(name, first_steps), device) / MIB if device.type == "cuda" else float("nan")
        first = f"{first_call[name]:8.2f} s" if generation else f"{'':>10}"
        print(
            f"  {name:12} {tokens / value:10.1f} {medians['published'] / value:9.1f}x {passes:10} "
            f"{value / passes * 1e3:10.3f} {peak:10.0f} {first}  {generation.backend if generation else ''}",
            flush=True,
        )


def wall(call: Any, device: torch.device) -> float:
    """Seconds of a call, including compilation."""
    begin = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begin


def agreement(model: Any, setting: Setting) -> None:
    """Print the share of tokens equal to the published algorithm's under full attention."""
    prompt = torch.randint(TEXT, (setting.batch, setting.prompt), device=model.device)
    *_, theirs = published(model, prompt, setting)
    ours = generate(model, prompt, params_of(setting, **OURS["full"]), eos_token_ids=()).canvas
    same = (theirs == ours)[:, setting.prompt :].float().mean().item()
    print(f"  same tokens as the published algorithm ({setting.name}, {model.dtype}): {same:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=3, help="rounds; medians are printed")
    parser.add_argument("--agreement", action="store_true", help="also run the published algorithm to its end")
    parser.add_argument("--only", nargs="*", metavar="ROW", help=f"on a GPU: {', '.join(ROWS)}")
    parser.add_argument("--profile", choices=[*CASES, *POLICIES], metavar="NAME", help="a row or a policy")
    given = parser.parse_args()
    unknown = set(given.only or ()) - set(ROWS)
    if unknown:
        parser.error(f"--only has no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if given.device == "cpu" and (given.only is not None or given.profile):
        parser.error("--only and --profile need a GPU")
    model = make_model(given.device, torch.bfloat16 if given.device == "cuda" else torch.float32)
    if given.only is not None:
        run_rows(model, given.only or list(ROWS))
    elif given.profile:
        run_profile(model, given.profile)
    else:
        for setting in SETTINGS[given.device]:
            compare(model, setting, given.repeats)
    if given.agreement:
        agreement(model, SETTINGS[given.device][0])


if __name__ == "__main__":
    main()
