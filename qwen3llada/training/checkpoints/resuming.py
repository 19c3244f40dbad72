"""Choice of the checkpoint to resume from. A run never silently starts anew while an unfinished one could go on."""

import logging
import math
from pathlib import Path

from qwen3llada.training.checkpoints.fingerprint import Fingerprint, differences, differing
from qwen3llada.training.checkpoints.folder import (
    CheckpointError,
    TrainerState,
    checkpoints,
    read_outcome,
    read_state,
    run_folder,
    runs,
    step_of,
)
from qwen3llada.training.start.groups_and_schedule import warmup_and_decay

log = logging.getLogger(__name__)

# Fingerprint entries that may differ from an explicitly named checkpoint: its content keeps its meaning.
CHANGEABLE = {"code", "loss_impl", "loss_smoothing", "max_grad_norm"}
CHANGEABLE |= {"optim.lr", "optim.betas", "optim.eps", "optim.weight_decay"}
CHANGEABLE_SECTIONS = ("noise.", "attention.")

ANEW = "resume_from: '' starts anew"


def find_checkpoint(resume_from: str, output_dir: Path, ours: Fingerprint) -> tuple[Path, TrainerState] | None:
    """The verified checkpoint to resume from, with our fingerprint in its state; None to start anew.

    "": none. A path: see `named`. "latest": see `latest`.
    Raises: CheckpointError as `named` and `latest`.
    """
    if not resume_from:
        return None
    found = latest(output_dir, ours) if resume_from == "latest" else named(Path(resume_from), ours)
    if found is not None:
        found[1].fingerprint = ours
    return found


def latest(output_dir: Path, ours: Fingerprint) -> tuple[Path, TrainerState] | None:
    """The newest intact checkpoint in `output_dir` of this run, or of the same run with fewer total steps.

    None if there is no checkpoint, or if all belong to finished runs: their models were exported, so this run trains
    anew. Damaged checkpoints are skipped with a warning.
    Raises: CheckpointError, with the reason and the options, if all of this run's checkpoints are damaged, if the
    learning-rate schedule does not allow more steps, or if another run was not finished.
    """
    own = run_folder(output_dir, ours)
    if checkpoints(own):
        if read_outcome(own) == "finished":
            log.warning("%s: this run has finished before; it trains anew and replaces those checkpoints", own)
            return None
        return _newest_whole(checkpoints(own))
    prints = {run: fingerprint for run in runs(output_dir) if (fingerprint := _fingerprint(run)) is not None}
    shorter = [run for run in prints if _is_shorter(prints[run], ours) and read_outcome(run) != "left"]
    for run in shorter:
        allowed = [folder for folder in checkpoints(run) if not schedule_conflict(ours, prints[run], step_of(folder))]
        if allowed:
            return _newest_whole(allowed)
    for run in shorter:
        newest = checkpoints(run)[-1]
        conflict = schedule_conflict(ours, prints[run], step_of(newest))
        raise CheckpointError(f"{newest} cannot go on: {conflict}; {ANEW}, and so does removing {run}")
    unfinished = [run for run in prints if read_outcome(run) is None]
    for run in unfinished:
        raise CheckpointError(_unfinished(run, prints[run], ours, others=len(unfinished) - 1))
    if prints:
        log.warning("starting anew: the runs in %s have finished or were left, and differ", output_dir / "checkpoints")
    return None


def named(folder: Path, ours: Fingerprint) -> tuple[Path, TrainerState]:
    """The checkpoint in `folder`. Changes of code, loss, noise, attention or optimiser settings only cause a warning.

    Raises: CheckpointError if `folder` is no checkpoint or damaged, if its content does not fit our run (other data,
    another step size, another optimiser …), or if the learning-rate schedule does not allow another number of steps.
    """
    head = read_state(folder, whole=False)
    theirs = head.fingerprint
    if lasting := lasting_differences(theirs, ours, head.global_step):
        raise CheckpointError(f"{folder}: made by another run: {lasting}")
    state = read_state(folder)
    changed = [name for name in differing(ours, theirs) if name != "total_steps"]
    if changed:
        log.warning("%s: goes on with changes: %s", folder, differences(ours, theirs))
        state.best = None  # not comparable with a loss measured in another way
    return folder, state


def lasting_differences(theirs: Fingerprint, ours: Fingerprint, step: int) -> str:
    """Differences that forbid resuming even from a named checkpoint at `step`, in one line; "" if there are none."""
    names = [n for n in differing(ours, theirs) if n not in CHANGEABLE and not n.startswith(CHANGEABLE_SECTIONS)]
    schedule = ""
    if "total_steps" in names and "optim.scheduler" not in names:
        names.remove("total_steps")
        schedule = schedule_conflict(ours, theirs, step)
    knobs = differences({n: ours.get(n) for n in names}, {n: theirs.get(n) for n in names})
    return ", ".join(part for part in (knobs, schedule) if part)


def schedule_conflict(ours: Fingerprint, theirs: Fingerprint, step: int) -> str:
    """Why a run with another number of steps cannot be continued as ours from `step`; "" if it can.

    It can while the learning rate is at its peak in both runs: after warm-up under constant_with_warmup, and in the
    stable part of warmup_stable_decay. A completed warm-up is not repeated, even if more steps would mean a longer one.
    """
    scheduler = ours["optim.scheduler"]
    steps = f"total_steps is {theirs['total_steps']} there and {ours['total_steps']} here"
    for knob in ("noise.stages", "attention.block_schedule"):
        if ours.get(knob):
            return f"{steps}, and {knob} changes at shares of it"
    if step >= ours["total_steps"]:
        return f"{steps}, and step {step} is not before its end"
    stable = [_stable_part(fingerprint) for fingerprint in (theirs, ours)]
    first, last = max(part[0] for part in stable), min(part[1] for part in stable)
    if first <= step <= last and scheduler in ("constant_with_warmup", "warmup_stable_decay"):
        return ""
    if scheduler not in ("constant_with_warmup", "warmup_stable_decay"):
        return f"{steps}, and the learning rate of optim.scheduler={scheduler} depends on it at every step"
    where = f"from step {first} on" if math.isinf(last) else f"between steps {first} and {last:.0f}"
    return f"{steps}, and under optim.scheduler={scheduler} the learning rate is the same in both only {where}"


def _stable_part(run: Fingerprint) -> tuple[int, float]:
    """First and last step at which the learning rate is at its peak."""
    total, scheduler = run["total_steps"], run["optim.scheduler"]
    warmup, decay = warmup_and_decay(scheduler, run["optim.warmup_ratio"], run["optim.decay_ratio"], total)
    return warmup, math.inf if scheduler == "constant_with_warmup" else total - decay


def _is_shorter(theirs: Fingerprint, ours: Fingerprint) -> bool:
    return differing(ours, theirs) == ["total_steps"] and theirs["total_steps"] < ours["total_steps"]


def _newest_whole(folders: list[Path]) -> tuple[Path, TrainerState]:
    """The newest intact checkpoint of `folders`. Raises: CheckpointError if there is none."""
    for folder in reversed(folders):
        try:
            return folder, read_state(folder)
        except CheckpointError as error:
            log.warning("checkpoint passed over: %s", error)
            reason = error
    raise CheckpointError(f"no checkpoint of this run is whole; {ANEW}; the oldest of {len(folders)}: {reason}")


def _unfinished(run: Path, theirs: Fingerprint, ours: Fingerprint, *, others: int) -> str:
    """Error message for an unfinished run that is not ours: what differs, and the options."""
    newest = checkpoints(run)[-1]
    ways = f"{ANEW}, and so does removing {run}"
    if not lasting_differences(theirs, ours, step_of(newest)):
        ways += f"; resume_from: {newest} goes on from there with the changes"
    more = f" ({others} more like it beside it)" if others else ""
    return f"{newest}: of a run that was not finished{more}, and that differs: {differences(ours, theirs)}; {ways}"


def _fingerprint(run: Path) -> Fingerprint | None:
    """Fingerprint of a run's newest readable checkpoint; None, with a warning, if there is none."""
    for folder in reversed(checkpoints(run)):
        try:
            return read_state(folder, whole=False).fingerprint
        except CheckpointError as error:
            log.warning("checkpoint passed over: %s", error)
    return None
