"""Speed of the graphed sampler on one GPU, row by row: the rows of `python -m bench.sample --only NAME …`.

A row that fails is reported and the next one goes on, in a new process if the failure has spoilt this one.
"""

import functools
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.measure import synchronize
from qwen3llada.sampling.sampler import SampleParams, generate

TEXT = 151_643  # lower ids are text
BLOCKS = {"block_length": 32, "gen_length": 256, "steps": 256}
EIGHT_STEPS = {"block_length": 32, "gen_length": 256, "steps": 64}
FOURS = {"block_length": 4, "gen_length": 256, "steps": 256}
SHORT = {"block_length": 32, "gen_length": 64, "steps": 64}
FULL = {"block_attention": False, "gen_length": 256, "block_length": 32, "steps": 64}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch to decode under block_causal, unless `given` says otherwise."""

    batch: int
    given: dict[str, Any] = field(default_factory=lambda: BLOCKS)
    prompt: int = 128
    others: int = 0  # prompt of all rows but the first; 0: the same
    repeats: int = 2

    def prompts(self) -> list[list[int]]:
        torch.manual_seed(0)
        lengths = [self.prompt] + [self.others or self.prompt] * (self.batch - 1)
        return [torch.randint(TEXT, (length,)).tolist() for length in lengths]


CASES = {
    "batch1": Case(batch=1),
    "batch8": Case(batch=8),
    "batch64": Case(batch=64, repeats=1),
    "batch128": Case(batch=128, repeats=1),
    "batch64-8steps": Case(batch=64, given=EIGHT_STEPS),
    "batch128-8steps": Case(batch=128, given=EIGHT_STEPS),
    "fours1": Case(batch=1, given=FOURS),
    "fours128": Case(batch=128, given=FOURS, repeats=1),
    "long8": Case(batch=8, prompt=3800),
    "long1": Case(batch=1, prompt=3800),
    "mixed8": Case(batch=8, prompt=3800, others=128),
    "full64": Case(batch=64, given=FULL, repeats=1),
    "dual64": Case(batch=64, given=FULL | {"cache": "dual"}, repeats=1),
}
POLICIES: dict[str, dict[str, Any]] = {
    "low_confidence": {},
    "temperature": {"temperature": 1.0},
    "random": {"remasking": "random"},
    "random_topk": {"remasking": "random_topk"},
    "entropy": {"remasking": "entropy"},
    "margin": {"remasking": "margin"},
    "position_temperature": {"position_temperature": 0.5},
    "threshold": {"unmask": "threshold", "confidence_threshold": 1.0},
    "factor": {"unmask": "factor", "factor": 0.0},
    "entropy_bound": {"unmask": "entropy_bound", "entropy_bound": 0.0},
    "temperature+entropy": {"temperature": 1.0, "remasking": "entropy"},
    "guidance": {"cfg_scale": 1.0},
}


def run_case(model: Any, case: Case, **more: Any) -> tuple[float, Any]:
    """Seconds of the best call after the first, and its result."""
    params, prompts = SampleParams(**(case.given | more)), case.prompts()
    generate(model, prompts, params, eos_token_ids=())
    best = float("inf")
    for _ in range(case.repeats):
        synchronize(model.device)
        begin = time.perf_counter()
        found = generate(model, prompts, params, eos_token_ids=())
        synchronize(model.device)
        best = min(best, time.perf_counter() - begin)
    return best, found


def decode_row(model: Any, name: str) -> str:
    case = CASES[name]
    taken, found = run_case(model, case)
    rate, each = case.batch * case.given["gen_length"] / taken, taken / found.forward_passes * 1e3
    return f"{rate:10.0f} tokens/s {each:8.3f} ms a pass {found.forward_passes:5} passes  {found.backend}"


def policies(model: Any, batch: int) -> Iterator[str]:
    """Each policy, as a ratio of greedy low_confidence."""
    base = 0.0
    for name, given in POLICIES.items():
        taken, found = run_case(model, Case(batch=batch, given=SHORT), **given)
        each = taken / found.forward_passes * 1e3
        base = base or each
        yield f"  {name:22} {each:8.3f} ms a pass {each / base:6.2f} of greedy  {found.backend}"


@torch.no_grad()
def prefill(model: Any) -> str:
    """8 × 4,096 tokens: keys and values of prompts, and one step; and the compiled forward pass of training."""
    taken, _ = run_case(model, Case(batch=8, prompt=4096, given={"gen_length": 32, "block_length": 32, "steps": 1}))
    tokens = torch.randint(TEXT, (8, 4096), device=model.device)
    from bench.sample import make_model
    from qwen3llada.training.cuda.fused_attention import fuse_attention

    trained = make_model("cuda", torch.bfloat16)
    fuse_attention(trained)  # as `training.start.model_and_processes.compile_layers`
    for module in (*trained.model.layers, trained.model.norm):
        module.forward = torch.compile(module.forward)
    times = []
    for _ in range(4):
        synchronize(model.device)
        begin = time.perf_counter()
        trained.model(input_ids=tokens)
        synchronize(model.device)
        times.append(time.perf_counter() - begin)
    forward = min(times)
    return (
        f"{taken * 1e3:8.1f} ms, {8 * 4096 / taken:9.0f} tokens/s; a compiled forward pass under full attention"
        f" {forward * 1e3:.1f} ms: {forward / taken:.2f} of its rate"
    )


FIRST = """
import time; begin = time.perf_counter()
import torch
from bench.sample import make_model
from bench.decoding import Case
from qwen3llada.sampling.sampler import SampleParams, generate
model = make_model("cuda", torch.bfloat16); torch.cuda.synchronize(); ready = time.perf_counter()
for _ in range(2):
    start = time.perf_counter()
    generate(model, Case(batch={batch}).prompts(), SampleParams(block_length=32, gen_length=64, steps=64))
    torch.cuda.synchronize()
    print(f"{{time.perf_counter() - start:.2f}} s", end=", ")
print(f"imports and model {{ready - begin:.1f}} s")
"""


def first_calls() -> Iterator[str]:
    """The first and the second call of a process, without and with kernels that an earlier process compiled."""
    with tempfile.TemporaryDirectory() as folder:
        for what, batch in (("nothing compiled yet", 8), ("kernels on disk", 8), ("another batch size", 1)):
            environment = os.environ | {"TRITON_CACHE_DIR": folder}
            child = subprocess.run(
                [sys.executable, "-c", FIRST.format(batch=batch)], env=environment, capture_output=True, text=True
            )
            yield f"  {what:22} {child.stdout.strip() or child.stderr.strip().splitlines()[-1]}"


def profile(model: Any, name: str) -> Iterator[str]:
    """Where the time of a row's call goes, by kernel."""
    case = CASES[name] if name in CASES else Case(batch=8, given=SHORT)
    more = {} if name in CASES else POLICIES[name]
    given = case.given | more
    blocks = 2 * given["block_length"] / given["gen_length"]  # two blocks are enough
    given |= {"gen_length": 2 * given["block_length"], "steps": round(given["steps"] * blocks)}
    params, prompts = SampleParams(**given), case.prompts()
    generate(model, prompts, params, eos_token_ids=())
    synchronize(model.device)
    begin = time.perf_counter()
    found = generate(model, prompts, params, eos_token_ids=())
    synchronize(model.device)
    taken = time.perf_counter() - begin
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        generate(model, prompts, params, eos_token_ids=())
        synchronize(model.device)
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    busy, passes = sum(event.self_device_time_total for event in events), found.forward_passes
    yield f"  {passes} passes, {taken / passes * 1e3:.3f} ms each; kernels run {busy / 1e3 / passes:.3f} ms of that"
    for event in events[:24]:
        share, each = event.self_device_time_total / busy, event.self_device_time_total / event.count
        yield f"  {share:6.1%} {event.count / passes:7.1f} a pass {each:9.2f} us each  {event.key[:90]}"


def _tiles(model: Any) -> Iterator[str]:
    from bench.attention_tiles import compare_tiles

    yield from compare_tiles()


def _products(model: Any) -> Iterator[str]:
    from bench.products import compare_products

    yield from compare_products()


ROWS: dict[str, Callable[[Any], Iterator[str] | str]] = {
    **{name: functools.partial(decode_row, name=name) for name in CASES},
    "policies8": lambda model: policies(model, 8),
    "policies64": lambda model: policies(model, 64),
    "prefill": prefill,
    "first": lambda model: first_calls(),
    "tiles": _tiles,
    "products": _products,
}


def run_rows(model: Any, names: Sequence[str]) -> None:
    """Print the rows. If a row spoils the GPU's state, the rest runs in a new process, which takes this one's place."""
    model.config.attention_policy, model.config.block_length = "block_causal", 32
    for i, name in enumerate(names):
        print(f"{name:16}", end="", flush=True)
        begin = time.perf_counter()
        try:
            lines = ROWS[name](model)
            if isinstance(lines, str):
                print(lines, end="", flush=True)
            else:
                for line in lines:
                    print(f"\n{line}", end="", flush=True)
            print(f"  [{time.perf_counter() - begin:.0f} s]", flush=True)
        except Exception as error:
            print(f" FAILED after {time.perf_counter() - begin:.0f} s\n{traceback.format_exc()}", flush=True)
            if "CUDA error" in str(error) and names[i + 1 :]:
                os.execv(sys.executable, [sys.executable, "-m", "bench.sample", "--only", *names[i + 1 :]])


def run_profile(model: Any, name: str) -> None:
    model.config.attention_policy, model.config.block_length = "block_causal", 32
    print(name)
    for line in profile(model, name):
        print(line, flush=True)
