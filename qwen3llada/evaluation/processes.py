"""The processes that evaluate together: each computes some batches, and all get all numbers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3llada.errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process among those that `accelerate launch` or `torchrun` started; alone without them."""

    rank: int
    count: int
    device: torch.device

    @property
    def share(self) -> tuple[int, int]:
        """(number of this process, how many there are), as `likelihood.estimate` takes it."""
        return self.rank, self.count

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum over all processes. Where only one of them has another value than 0 it is exact."""
        if self.count == 1:
            return values
        from accelerate.utils import reduce

        return reduce(torch.from_numpy(np.ascontiguousarray(values)).to(self.device), "sum").cpu().numpy()


def join_processes(environ: Mapping[str, str] = os.environ) -> Processes:
    """Meet the processes that were launched with this one.

    Raises: InputError if WORLD_SIZE is no number of processes, or if they did not meet.
    """
    launched = environ.get("WORLD_SIZE", "1")
    if not launched.isdecimal() or int(launched) < 1:
        raise InputError(f"WORLD_SIZE={launched!r} must be the number of processes, 1 or more")
    if int(launched) == 1:
        return Processes(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    from accelerate.state import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes != int(launched):
        raise InputError(f"WORLD_SIZE={launched} processes were launched, but {state.num_processes} met")
    return Processes(state.process_index, state.num_processes, state.device)
