"""`accelerate launch` for one machine, which leaves with the status of the training that it started.

    python launch/machine.py --config_file launch/fsdp2.yaml --num_processes 8 -m stages.pretrain --force

The flags are those of `accelerate launch`. That launcher leaves with 1 whatever its processes left with, so a scheduler
could not tell a run that was stopped from one that failed. Statuses here:

    0    the training is complete
    75   it was stopped by a signal, here or on another machine: start it again, and it goes on from its last checkpoint
    else the status of the process that failed: 1 input or output, or a defect; 2 parameters; 128 + a signal's number

A signal that comes while it still waits for the other machines ends it as any program, or does nothing before torch
gives up waiting; the scheduler kills it then, and nothing is lost, since no training has begun.
"""

import os
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

RESUMABLE = os.EX_TEMPFAIL  # 75, as qwen3llada/training/stopping.py; importing that takes seconds
ENDED_BY_LAUNCHER = {-signal.SIGTERM, 128 + signal.SIGTERM}  # when one process ends, the launcher stops the others


def main(flags: Sequence[str]) -> NoReturn:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(flags))
    except SignalException:  # the processes got the signal too, and have left
        sys.exit(RESUMABLE)
    except ChildFailedError as error:
        status = status_of(failure.exitcode for failure in error.failures.values())
        if status != RESUMABLE:
            print(error, file=sys.stderr)
        sys.exit(status)
    sys.exit(0)


def status_of(exitcodes: Iterable[int]) -> int:
    """One status for processes that ended with `exitcodes`; a negative one is a signal's number."""
    codes = sorted(exitcodes)
    own = [code for code in codes if code not in ENDED_BY_LAUNCHER] or codes
    failed = next((code for code in own if code != RESUMABLE), RESUMABLE)
    return 128 - failed if failed < 0 else failed


if __name__ == "__main__":
    main(sys.argv[1:])
