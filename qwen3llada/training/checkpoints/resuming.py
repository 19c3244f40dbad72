"""Which checkpoint a run goes on from. A run never starts anew in silence where an unfinished one could go on."""

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
from qwen3llada.training.start.optimizer import warmup_and_decay

log = logging.getLogger(__name__)

# What may differ from a checkpoint that is named: what is stored means the same, and training goes on otherwise.
CHANGEABLE = {"code", "loss_impl", "loss_smoothing", "max_grad_norm"}
CHANGEABLE |= {"optim.lr", "optim.betas", "optim.eps", "optim.weight_decay"}
CHANGEABLE_SECTIONS = ("noise.", "attention.")

ANEW = "resume_from: '' starts anew"


def find_checkpoint(resume_from: str, output_dir: Path, ours: Fingerprint) -> tuple[Path, TrainerState] | None:
    """The checkpoint to go on from, checked; None to start anew. Its state has our fingerprint.

    "": none. A path: that one, see `named`. "latest": see `latest`.
    Raises: CheckpointError as these two do.
    """
    if not resume_from:
        return None
    found = latest(output_dir, ours) if resume_from == "latest" else named(Path(resume_from), ours)
    if found is not None:
        found[1].fingerprint = ours
    return found


def latest(output_dir: Path, ours: Fingerprint) -> tuple[Path, TrainerState] | None:
    """The newest checkpoint in `output_dir` that is whole and of this run, or of the same run with fewer steps.

    None where there is no checkpoint, and where what is there belongs to runs that have finished: their models were
    exported, so this one trains anew. Damaged checkpoints are named in the log and passed over.
    Raises: CheckpointError naming the reason and the ways on if this run's checkpoints are all damaged, if the one with
    fewer steps cannot go on under the learning-rate schedule, and if another run was not finished.
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
    """The checkpoint in `folder`. Changed code, loss, noise, attention or optimiser settings are said and accepted.

    Raises: CheckpointError if it is none or damaged, if what is stored there means nothing to our run (other data,
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
        state.best = None  # a loss that is measured in another way cannot be compared with it
    return folder, state


def lasting_differences(theirs: Fingerprint, ours: Fingerprint, step: int) -> str:
    """What forbids going on from a checkpoint after `step` even if it is named, in one line; "" if nothing does."""
    names = [n for n in differing(ours, theirs) if n not in CHANGEABLE and not n.startswith(CHANGEABLE_SECTIONS)]
    schedule = ""
    if "total_steps" in names and "optim.scheduler" not in names:
        names.remove("total_steps")
        schedule = schedule_conflict(ours, theirs, step)
    knobs = differences({n: ours.get(n) for n in names}, {n: theirs.get(n) for n in names})
    return ", ".join(part for part in (knobs, schedule) if part)


def schedule_conflict(ours: Fingerprint, theirs: Fingerprint, step: int) -> str:
    """Why a run of so many steps cannot go on as one of ours, "" if it can: the learning rate must be at its peak.

    That is so in all of constant_with_warmup and in the stable part of warmup_stable_decay, after warm-up in both runs.
    Warm-up that is over stays as it was, though a share of more steps would have been longer.
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
    """First and last step after which the learning rate is at its peak."""
    total, scheduler = run["total_steps"], run["optim.scheduler"]
    warmup, decay = warmup_and_decay(scheduler, run["optim.warmup_ratio"], run["optim.decay_ratio"], total)
    return warmup, math.inf if scheduler == "constant_with_warmup" else total - decay


def _is_shorter(theirs: Fingerprint, ours: Fingerprint) -> bool:
    return differing(ours, theirs) == ["total_steps"] and theirs["total_steps"] < ours["total_steps"]


def _newest_whole(folders: list[Path]) -> tuple[Path, TrainerState]:
    """The last of `folders` that is whole. Raises: CheckpointError if none is."""
    for folder in reversed(folders):
        try:
            return folder, read_state(folder)
        except CheckpointError as error:
            log.warning("checkpoint passed over: %s", error)
            reason = error
    raise CheckpointError(f"no checkpoint of this run is whole; {ANEW}; the oldest of {len(folders)}: {reason}")


def _unfinished(run: Path, theirs: Fingerprint, ours: Fingerprint, *, others: int) -> str:
    """The error for a run that was not finished and is not ours: what differs, and the ways on."""
    newest = checkpoints(run)[-1]
    ways = f"{ANEW}, and so does removing {run}"
    if not lasting_differences(theirs, ours, step_of(newest)):
        ways += f"; resume_from: {newest} goes on from there with the changes"
    more = f" ({others} more like it beside it)" if others else ""
    return f"{newest}: of a run that was not finished{more}, and that differs: {differences(ours, theirs)}; {ways}"


def _fingerprint(run: Path) -> Fingerprint | None:
    """That of a run's newest checkpoint that has one; None, and a warning, if none has."""
    for folder in reversed(checkpoints(run)):
        try:
            return read_state(folder, whole=False).fingerprint
        except CheckpointError as error:
            log.warning("checkpoint passed over: %s", error)
    return None
