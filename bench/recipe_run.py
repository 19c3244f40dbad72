"""One run of `bench.recipes`: a training of a fixed number of seconds by the project's own trainer, and its bounds."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.measure import synchronize
from bench.random_run import clean
from qwen3llada.batches.samples import Spread
from qwen3llada.corpus.tokens.mapped_tokens import load_tokens
from qwen3llada.evaluation.bound import Bound
from qwen3llada.evaluation.likelihood import estimate
from qwen3llada.folder_lock import released_folders
from qwen3llada.modeling.loading import load_pretrained
from qwen3llada.modeling.params import store_attention
from qwen3llada.training.checkpoints.folder import TrainerState
from qwen3llada.training.checkpoints.save_and_restore import save_final_model
from qwen3llada.training.loop import training_steps
from qwen3llada.training.params import TrainParams
from qwen3llada.training.run import Run
from qwen3llada.training.start.groups_and_schedule import build_schedule
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest
from qwen3llada.training.watch.monitor import Monitor, NonFiniteError

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the budget: where the bound is measured
REHEARSALS = {"cuda": 32, "cpu": 3}  # steps of each of the two rehearsals


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out sequences, and the lengths of their prompts (0 in text)."""

    sequences: list[list[int]]
    prompt_lengths: list[int]

    @classmethod
    def read(cls, folder: Path, samples: int) -> "HeldOut":
        """`samples` (0: all) sequences of a tokenized split, spread over it. Without those that predict nothing."""
        dataset = Spread(load_tokens(folder), samples)
        found = [dataset[number] for number in range(len(dataset))]
        kept = [(s.tokens.tolist(), s.prompt_length or 0) for s in found if len(s.tokens) > (s.prompt_length or 0)]
        return cls(sequences=[tokens for tokens, _ in kept], prompt_lengths=[prompt for _, prompt in kept])


class Probe:
    """A second model, neither compiled nor graphed, that measures the bound of the weights in training.

    On a GPU it is in bfloat16, as `stages.evaluate` with `bf16: true`. Masks are the same in all measurements.
    """

    def __init__(self, folder: Path, texts: HeldOut, device: torch.device, *, rounds: int, final_rounds: int):
        kind = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = load_pretrained(folder, dtype=kind).to(device).eval()
        self.texts, self.rounds, self.final_rounds = texts, rounds, final_rounds
        self.batch_tokens = 32768 if device.type == "cuda" else 2048

    @torch.no_grad()
    def __call__(self, run: Run, *, final: bool) -> Bound:
        """The bound per token of the run's present weights, under the attention that they are trained for."""
        for own, trained in zip(self.model.parameters(), run.model.parameters(), strict=True):
            own.copy_(trained)
        store_attention(self.model.config, run.params.attention)
        return estimate(
            self.model,
            self.texts.sequences,
            rounds=self.final_rounds if final else self.rounds,
            prompt_lengths=self.texts.prompt_lengths,
            batch_tokens=self.batch_tokens,
        ).per_token()


def train_for(
    budget: float,
    params: TrainParams,
    probe: Callable[..., Bound],
    *,
    seed: int,
    template: str,
    start_from: str,
    keep: bool,
) -> dict[str, Any]:
    """Train for about `budget` seconds. The steps that fit are found in rehearsals, so that schedules end with the run.

    Set-up, compilation, rehearsals and the measurements of the bound are outside the budget.

    Args:
        probe: measures the bound (see `Probe`).
        start_from: an entry of `STARTS`, applied to the loaded weights.
        keep: write the final model to `params.dst`.

    Returns: what was measured, with the points of the curve; "diverged" instead of later points if a number was not
        finite.
    """
    clean()
    began = time.perf_counter()
    with StopRequest() as stop, released_folders():
        run = start(params, seed=seed, template=template)
        run.objective.train()
        STARTS[start_from](run, torch.Generator().manual_seed(seed))
        weights = [parameter.detach().clone() for parameter in run.model.parameters()]
        step_seconds = rehearse(run, weights, stop)
        rewind(run, weights, steps=max(2, 1 + round(budget / step_seconds)))
        del weights
        found = timed_run(run, stop, probe)
        if keep and "diverged" not in found:
            save_final_model(run)
    return {
        "rows": params.micro_batch_size * params.gradient_accumulation_steps,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "whole_seconds": round(time.perf_counter() - began, 1),
        **found,
    }


def rehearse(run: Run, weights: Sequence[Tensor], stop: StopRequest) -> float:
    """Seconds of an optimiser step. Two short runs through all stages and schedules: the first compiles and records."""
    steps = REHEARSALS[run.device.type]
    for _ in range(2):
        rewind(run, weights, steps=steps)
        with closing(training_steps(run, stop)) as results:
            next(results)  # starts the loader
            synchronize(run.device)
            began = time.perf_counter()
            for _ in results:
                pass
            synchronize(run.device)
            seconds = (time.perf_counter() - began) / (steps - 1)
    return seconds


@torch.no_grad()
def rewind(run: Run, weights: Sequence[Tensor], *, steps: int) -> None:
    """Bring the run to its beginning, for `steps` optimiser steps. Compiled layers and CUDA graphs stay as they are."""
    for parameter, weight in zip(run.model.parameters(), weights, strict=True):
        parameter.copy_(weight)
    optimizer, optim = run.inner_optimizer, run.params.optim
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["lr"] = optim.lr
        group.pop("initial_lr", None)
    run.lr_schedule = build_schedule(optimizer, optim, steps)
    run.total_steps, run.data = steps, run.data.in_run(steps)
    run.state = TrainerState(fingerprint=run.fingerprint, processes=run.accelerator.num_processes)


def timed_run(run: Run, stop: StopRequest, probe: Callable[..., Bound]) -> dict[str, Any]:
    """Train to the end of the run; measure the bound at the start and after each of `SHARES` of its steps."""
    marks = {max(1, round(share * run.total_steps)): share for share in SHARES}
    first = probe(run, final=False)
    points = [{"share": 0.0, "step": 0, "seconds": 0.0, "tokens": 0, **_bound(first)}]
    monitor, tokens, seconds = Monitor(run, stop), 0, 0.0
    began = time.perf_counter()
    try:
        for result in training_steps(run, stop):
            monitor.take(result)
            tokens += result.tokens
            if result.step == 1:  # starts the loader, and allocates the optimiser's state
                monitor.flush()
                began = time.perf_counter()
            if result.step in marks:
                with monitor.pause():
                    synchronize(run.device)
                    seconds += time.perf_counter() - began
                    bound = probe(run, final=result.step == run.total_steps)
                    point = {"share": marks[result.step], "step": result.step, "seconds": round(seconds, 3)}
                    points.append(point | {"tokens": tokens, **_bound(bound)})
                    synchronize(run.device)
                    began = time.perf_counter()
            if stop.signal is not None:
                raise KeyboardInterrupt
        monitor.flush()
    except NonFiniteError as error:
        return {"diverged": str(error), "points": points}
    measured = monitor.finish()
    return {
        "steps": run.total_steps,
        "seconds": round(seconds, 2),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds * (run.total_steps - 1) / run.total_steps),
        "mfu": measured["mfu"],
        "peak_memory_gib": measured["peak_memory_gib"],
        "estimated_memory_gib": measured["estimated_memory_gib"],
        "final_train_loss": measured["loss"],
        "points": points,
    }


def _bound(bound: Bound) -> dict[str, float]:
    if not math.isfinite(bound.nats):
        raise ValueError(f"{bound=} must be finite")
    return {"nelbo": round(bound.nats, 5), "error": round(bound.standard_error, 5)}


def _as_loaded(run: Run, generator: torch.Generator) -> None:
    """The converted checkpoint as it is."""


@torch.no_grad()
def _random(run: Run, generator: torch.Generator) -> None:
    """Fresh weights of the same shapes: matrices normal with the config's standard deviation, norms 1, biases 0."""
    for name, parameter in run.model.named_parameters():
        if parameter.ndim >= 2:
            drawn = torch.randn(parameter.shape, generator=generator) * run.model.config.initializer_range
            parameter.copy_(drawn)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _mask_row(make: Callable[[Tensor, Run, torch.Generator], Tensor]) -> Callable[[Run, torch.Generator], None]:
    """The embedding of the mask token becomes `make` of the rows [V, D] of the tokenizer's other tokens."""

    @torch.no_grad()
    def change(run: Run, generator: torch.Generator) -> None:
        mask = run.model.config.mask_token_id
        weight = run.model.get_input_embeddings().weight
        known = [number for number in range(min(len(run.tokenizer), len(weight))) if number != mask]
        weight[mask] = make(weight[known], run, generator)

    return change


def _mean(rows: Tensor, run: Run, generator: torch.Generator) -> Tensor:
    return rows.double().mean(0).to(rows)


def _eos(rows: Tensor, run: Run, generator: torch.Generator) -> Tensor:
    return run.model.get_input_embeddings().weight[run.tokenizer.eos_token_id].clone()


def _normal(rows: Tensor, run: Run, generator: torch.Generator) -> Tensor:
    """Normal, with the standard deviation of the other rows."""
    return torch.randn(rows.shape[1], generator=generator).to(rows) * rows.std()


STARTS: dict[str, Callable[[Run, torch.Generator], None]] = {
    "pretrained": _as_loaded,
    "random": _random,
    "mask_mean": _mask_row(_mean),
    "mask_eos": _mask_row(_eos),
    "mask_random": _mask_row(_normal),
}
