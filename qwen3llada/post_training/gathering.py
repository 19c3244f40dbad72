"""Sharing work over ranks, so that an error of one rank ends all."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from qwen3llada.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def share_of(items: Sequence[T], accelerator: "Accelerator") -> list[T]:
    """This rank's part of the items: neighbours, in order."""
    mine = np.array_split(np.arange(len(items)), accelerator.num_processes)[accelerator.process_index]
    return [items[int(number)] for number in mine]


def gathered(make: Callable[[], list[T]], accelerator: "Accelerator") -> list[T]:
    """What `make` gives on each rank, one after the other, on all ranks. All ranks must call this.

    Raises: InputError on every rank, with the message of the first rank that raised one.
    """
    from accelerate.utils import gather_object

    if accelerator.num_processes == 1:
        return make()
    failed: list[str] = []
    made: list[T] = []
    try:
        made = make()
    except InputError as error:
        failed = [str(error)]
    failures = gather_object(failed)
    found = gather_object(made)
    if failures:
        raise InputError(failures[0])
    return found
