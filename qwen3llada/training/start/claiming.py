"""What a run writes is checked and its working folder locked, by the main process and for all of them."""

from pathlib import Path
from typing import TYPE_CHECKING

from qwen3llada.destinations import MODEL, REPORTS, WORK, check_destinations
from qwen3llada.errors import InputError
from qwen3llada.folder_lock import hold_folder
from qwen3llada.training.params import TrainParams

if TYPE_CHECKING:
    from accelerate import Accelerator


def claim_destinations(params: TrainParams, accelerator: "Accelerator", *, started: bool = False) -> None:
    """Check `dst`, `output_dir` and `reports`, and take the lock of `output_dir`. By all processes.

    Called twice. At the beginning the lock is taken only if another run may be there; nothing is written, as inputs
    may still turn out wrong. With `started`, when all of them are known to be good, the folder is made and locked.
    Raises: InputError in all processes, with the line of the main one.
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


def check_training(params: TrainParams, section: str = "") -> None:
    """`check_destinations` of what a training run writes; `section` (`sft.`) goes before the knobs in an error."""
    model, reports = {f"{section}dst": (params.dst, MODEL)}, {f"{section}reports": (params.reports, REPORTS)}
    work = {f"{section}output_dir": (params.output_dir, WORK)}
    check_destinations(model | work | reports, {f"{section}model": params.model, f"{section}data": params.data})
    if params.resume_from not in ("", "latest"):  # a checkpoint lies in output_dir, as a rule
        check_destinations(model | reports, {f"{section}resume_from": Path(params.resume_from)})
