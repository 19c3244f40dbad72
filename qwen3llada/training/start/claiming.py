"""Checks of the destinations of a run and the lock of its working folder, by rank 0 for all ranks."""

from pathlib import Path
from typing import TYPE_CHECKING

from qwen3llada.destinations import MODEL, REPORTS, WORK, check_destinations
from qwen3llada.errors import InputError
from qwen3llada.folder_lock import hold_folder
from qwen3llada.training.run_params import RunParams

if TYPE_CHECKING:
    from accelerate import Accelerator


def claim_destinations(params: RunParams, accelerator: "Accelerator", *, started: bool = False) -> None:
    """Check `dst`, `output_dir` and `reports`, and lock `output_dir`. All ranks must call this.

    Called twice. The first call takes the lock only if a lock file exists, and writes nothing, because inputs may
    still turn out to be wrong. The second call (`started`), after all input checks, makes the folder and locks it.
    Raises: InputError on all ranks, with rank 0's message.
    """
    from accelerate.utils import broadcast_object_list

    refused: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            if not started:
                check_training(params)
            hold_folder("output_dir", params.output_dir, create=started)
        except (InputError, OSError) as error:
            refused = [str(error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(refused)
    if refused[0] is not None:
        raise InputError(refused[0])


def check_training(params: RunParams, section: str = "") -> None:
    """`check_destinations` for a training run. `section`, such as `sft.`, prefixes the knobs in error messages."""
    model, reports = {f"{section}dst": (params.dst, MODEL)}, {f"{section}reports": (params.reports, REPORTS)}
    work = {f"{section}output_dir": (params.output_dir, WORK)}
    check_destinations(model | work | reports, {f"{section}model": params.model, f"{section}data": params.data})
    if params.resume_from not in ("", "latest"):  # not checked against output_dir, where it usually lies
        check_destinations(model | reports, {f"{section}resume_from": Path(params.resume_from)})
