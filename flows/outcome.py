"""How a stage ended, from dvc's exit status and output. dvc exits with 255 for any failure of a stage."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flows.guard import TIMED_OUT, TOLD_TO_STOP

RESUMABLE = os.EX_TEMPFAIL  # 75: the stage was stopped and saved what it needs to go on
Kind = Literal["ran", "cached", "unchanged", "stopped", "killed", "busy", "network", "timeout", "cancelled", "failed"]
SUCCESS: frozenset[Kind] = frozenset({"ran", "cached", "unchanged"})
WORTH_RETRYING: frozenset[Kind] = frozenset({"stopped", "killed", "busy", "network"})

_EXIT = re.compile(r"failed to run: .*, exited with (-?\d+)\s*$", re.DOTALL)
_BUSY = re.compile(r"' is busy, it is being blocked by|Unable to acquire lock")
_NETWORK = re.compile(
    r"connection (error|refused|reset|aborted|timed out|broken)|connect(ion)?error|name resolution|getaddrinfo|"
    r"max retries exceeded|read timed out|timeout ?error|network is unreachable|remote end closed|incompleteread|"
    r"(429|500|502|503|504) (client|server) error|too many requests|bad gateway|service unavailable|gateway time-?out",
    re.IGNORECASE,
)
# Remains of a tqdm progress bar ("[00:02<00:05, 9.1step/s]") that a killed process left before a message on the line.
_BAR = re.compile(r"^.*\[\d+:\d\d[^\]]*\]\s*(?=(ERROR|WARNING|error|guard|stopped by \w+): )")
# Message of a stopped training that saved a checkpoint: "stopped by SIGTERM: checkpoint saved at step 40 in …".
_SAVED = re.compile(r"^stopped by [^:]+: checkpoint saved ")
# dvc's report of such a stop, and the stage's note that it is no failure. The message above says it better.
REPORT_OF_STOP = re.compile(
    rf"ERROR: failed to reproduce .*, exited with {RESUMABLE}$|^what DVC says next is about this stop "
)
_OURS = re.compile(r"^(ERROR|WARNING): |^> |^Running stage |^guard: |^Updating lock|^Generating lock")


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: the kind of end, the stage's exit status, and one line with the reason."""

    kind: Kind
    status: int
    message: str

    @property
    def ok(self) -> bool:
        return self.kind in SUCCESS

    @property
    def worth_retrying(self) -> bool:
        return self.kind in WORTH_RETRYING


class StageFailedError(RuntimeError):
    """A stage did not succeed. `outcome` says how."""

    def __init__(self, stage: str, outcome: Outcome) -> None:
        super().__init__(f"stage {stage}: {outcome.message}")
        self.stage, self.outcome = stage, outcome

    def __reduce__(self) -> tuple:
        return type(self), (self.stage, self.outcome)


def read_outcome(status: int, lines: Sequence[str]) -> Outcome:
    """The outcome from the guard's exit status and the last lines of output."""
    lines = [_BAR.sub("", line) for line in lines]
    text = "\n".join(lines)
    if status == 0:
        if re.search(r"^Stage '.*' didn't change, skipping", text, re.MULTILINE):
            return Outcome("unchanged", 0, "did not change")
        if re.search(r"^Stage '.*' is cached - skipping run", text, re.MULTILINE):
            return Outcome("cached", 0, "came from the run cache")
        return Outcome("ran", 0, "ran")
    if status == TIMED_OUT:
        limit = "ran longer than meta.flow.timeout_minutes of dvc.yaml allows"
        return Outcome("timeout", status, f"{limit}; {_saved(lines) or 'stopped'}")
    if status == TOLD_TO_STOP:
        return Outcome("cancelled", status, _saved(lines) or "stopped before it was done; the next run runs it again")
    exited = next((m for line in reversed(lines) if line.startswith("ERROR:") and (m := _EXIT.search(line))), None)
    if exited is None:
        return _dvc_failed(status, lines, text)
    return _stage_failed(int(exited[1]), lines)


def _stage_failed(status: int, lines: Sequence[str]) -> Outcome:
    if status == RESUMABLE:
        said = _saved(lines) or "was stopped and can be resumed"
        return Outcome("stopped", status, f"{said} (exit status {status})")
    if status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        return Outcome("killed", status, f"was killed by signal {number}; out of memory is a likely reason for 9")
    said = _last_words(lines)
    kind: Kind = "network" if _NETWORK.search(said) else "failed"
    return Outcome(kind, status, f"exit status {status}: {said}")


def _dvc_failed(status: int, lines: Sequence[str], text: str) -> Outcome:
    said = next((line.removeprefix("ERROR: ") for line in reversed(lines) if line.startswith("ERROR: ")), "")
    if _BUSY.search(text):
        return Outcome("busy", status, said or "dvc is busy")
    if 128 < status < 255:
        return Outcome("killed", status, f"dvc was killed by signal {status - 128}")
    return Outcome("failed", status, f"dvc ended with status {status}: {said or _last_words(lines)}")


def _saved(lines: Sequence[str]) -> str | None:
    """The message of a stopped training about its checkpoint."""
    return next((line for line in reversed(lines) if _SAVED.match(line)), None)


def _last_words(lines: Sequence[str]) -> str:
    """The stage's own error line, or else its last line."""
    own = [line.strip() for line in lines if line.strip() and not _OURS.search(line)]
    return next((line for line in reversed(own) if line.startswith("error: ")), own[-1] if own else "no message")
