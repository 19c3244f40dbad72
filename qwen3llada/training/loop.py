"""The training loop: a generator of step results, and `train`, which monitors, evaluates, saves and stops."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from qwen3llada.batches.source import Step
from qwen3llada.evaluation.eval_loss import held_out_sums
from qwen3llada.folder_lock import released_folders
from qwen3llada.training.checkpoints.folder import finish
from qwen3llada.training.checkpoints.save_and_restore import finish_saving, save, save_final_model
from qwen3llada.training.run import Run
from qwen3llada.training.run_params import RunParams
from qwen3llada.training.start.claiming import claim_destinations
from qwen3llada.training.start.out_of_memory import explain_out_of_memory
from qwen3llada.training.start.start import Task, start
from qwen3llada.training.stopping import Stopped, StopRequest, stop_message
from qwen3llada.training.watch.monitor import Monitor
from qwen3llada.training.watch.step_stats import StepResult, StepStats


def training_steps(run: Run, stop: StopRequest) -> Iterator[StepResult]:
    """Take optimiser steps from `run.state` to the end of the run, and yield each result.

    At each yield the run has completed exactly `run.state.global_step` steps, so it can be saved or abandoned.
    """
    state = run.state
    while state.global_step < run.total_steps and not state.ended:
        for step in run.data.steps(state.epoch, start_step=state.epoch_batch, cursors=state.cursors):
            result = optimiser_step(run, step, stop)
            state.cursors = run.data.cursors_after(step, state.cursors)
            state.global_step += 1
            state.epoch_batch += 1
            yield result
            if state.global_step == run.total_steps or state.ended:
                return
        state.epoch, state.epoch_batch = state.epoch + 1, 0


def optimiser_step(run: Run, step: Step, stop: StopRequest) -> StepResult:
    """Forward and backward passes over all micro-batches, then one update. Does not wait for the device."""
    accelerator, stats, flops = run.accelerator, StepStats(run.device, len(run.loss.figure_names)), 0.0
    denominator = run.loss.denominator(step)
    for batch in step.micro_batches:
        with gradients_of(run, last=batch.step.is_last_micro_batch):
            loss = run.loss(run.objective, batch)
            accelerator.backward(loss.total * (run.averaged_over / denominator))
        stats.add(loss, denominator)
        tokens = loss.prepared.tokens.numel()
        flops += run.flops.step(tokens, pairs=loss.prepared.pairs, corrupted=len(loss.cross_entropy))

    grad_norm = clip(run)
    lr = float(run.lr_schedule.get_last_lr()[0])
    run.optimizer.step()
    run.lr_schedule.step()
    run.optimizer.zero_grad(set_to_none=True)
    return StepResult(
        step=run.state.global_step + 1,
        epoch=run.state.epoch,
        epoch_batch=run.state.epoch_batch,
        lr=lr,
        tokens=step.tokens,
        flops=flops,
        figures=step.figures,
        read=stats.finish(grad_norm, stop.signal is not None, lambda t: accelerator.reduce(t, "sum")),
    )


def gradients_of(run: Run, *, last: bool) -> AbstractContextManager:
    """The context of a micro-batch's passes, which decides when gradients are reduced. `last`: the update follows."""
    if run.sharded is not None:
        run.sharded.begin_micro_batch(last=last)
        return nullcontext()
    return nullcontext() if last else run.accelerator.no_sync(run.objective)


def clip(run: Run) -> Tensor:
    """Clip the gradients to `max_grad_norm`. Returns the norm before clipping."""
    limit = run.params.max_grad_norm or float("inf")
    if run.scales_in_update:
        norm = torch.nn.utils.get_total_norm([p.grad for p in run.parameters() if p.grad is not None])
        run.inner_optimizer.grad_scale = ((norm.float() + 1e-6) / limit).clamp(min=1.0)
        return norm
    if run.sharded is not None:
        run.accelerator.unscale_gradients()
        return run.sharded.clip(run.objective.parameters(), limit)
    return run.accelerator.clip_grad_norm_(run.objective.parameters(), limit)


def train(params: RunParams, *, seed: int, template: str = "plain", task: Task | None = None) -> dict[str, Any]:
    """Train as `params` say, from the beginning or a checkpoint, and write the final model to `params.dst`.

    Args:
        seed: of data order, noise, and initial adapter weights.
        template: prompt template of the data, stored with the model.
        task: what is learnt; None: to undo noise, as pretraining and SFT do.

    Returns: the summary, which is also in `params.reports`.
    Raises: InputError or OSError in one line for bad input, a full disk, a loss that is not finite, or a device out of
        memory; `Stopped` (exit status 75) after a signal, once a checkpoint is saved.
    """
    with StopRequest() as stop, released_folders():
        with explain_out_of_memory(params, loading=True):
            run = start(params, seed=seed, template=template, task=task)
        claim_destinations(params, run.accelerator, started=True)
        monitor = Monitor(run, stop)
        with explain_out_of_memory(params, largest=run.memory.largest):
            if run.judge is not None and run.state.global_step == 0:
                with monitor.pause():
                    measure(run, monitor)
            for result in training_steps(run, stop):
                monitor.take(result)
                last = result.step == run.total_steps
                improved = False
                if run.is_measured and (last or result.step % params.eval_every_steps == 0):
                    with monitor.pause():
                        improved = measure(run, monitor)
                stopping = monitor.stop_requested and not last and not run.state.ended
                if stopping or (improved and params.save_steps > 0) or is_due(params.save_steps, result.step):
                    with monitor.pause():
                        run.state.telemetry = monitor.state()
                        save(run, monitor.points)
                if stopping:
                    finish_saving(run)
                    monitor.bar.close()
                    message = stop_message(stop.signal, result.step, run.last_checkpoint, params.resume_from)
                    run.accelerator.print(message, file=sys.stderr)
                    raise Stopped(message)
            monitor.flush()
            finish_saving(run)
            save_final_model(run)
        summary = monitor.finish()
        if run.accelerator.is_main_process:
            finish(params.output_dir, run.fingerprint)
        return summary


def is_due(every: int, step: int) -> bool:
    """Whether something done every `every` steps (0: never) is due after `step`."""
    return every > 0 and step % every == 0


def measure(run: Run, monitor: Monitor) -> bool:
    """Measure on held-out data, and note whether the run may end. Returns whether it is the run's best so far."""
    if run.judge is None:
        return monitor.evaluated(*evaluate(run))
    found = run.judge.measure(run)
    improved = monitor.measured(found)
    run.state.ended = found.ends_run and run.state.global_step > 0
    return improved


def evaluate(run: Run) -> tuple[float, dict[str, float]]:
    """The training loss on held-out data, and the unweighted loss by noise level. The same on all ranks."""
    assert run.held_out is not None
    sums = held_out_sums(run.objective, run.held_out.steps(epoch=0), run.loss)
    return sums.reduced(lambda tensor: run.accelerator.reduce(tensor, "sum")).means()
