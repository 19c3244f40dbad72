"""Saving and restoring of checkpoints, and saving of the final model. All ranks take part."""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qwen3llada.artifacts import mark, new_folder, read_jsonl
from qwen3llada.modeling.attention import STORED_ATTENTION
from qwen3llada.modeling.loading import merged
from qwen3llada.training.checkpoints.background import ShardWriter
from qwen3llada.training.checkpoints.contents import DATA_FILE, Gathered, checkpoint_bytes, tidy, write_small_files
from qwen3llada.training.checkpoints.folder import (
    CheckpointError,
    checkpoints,
    remove,
    run_folder,
    step_folder,
    step_of,
    write_checkpoint,
)
from qwen3llada.training.checkpoints.save_sharded import begin_saving, export_sharded, finish_saving
from qwen3llada.training.checkpoints.shards import is_sharded
from qwen3llada.training.checkpoints.whole_tensors import load_optimizer_state, model_state, optimizer_state, reshard
from qwen3llada.training.model_card import CARD, training_card
from qwen3llada.training.run import Run
from qwen3llada.training.start.adapters import ADAPTER_FOLDER, save_adapters
from qwen3llada.training.start.groups_and_schedule import set_schedule
from qwen3llada.training.start.model_and_processes import DTYPES

if TYPE_CHECKING:
    from accelerate import Accelerator


def save(run: Run, points: list[dict[str, Any]]) -> None:
    """Write a checkpoint of the run's current state and remove those beyond the limit. All ranks must call this.

    A sharded run only begins to: `finish_saving` waits for the end. At most one checkpoint is in flight.
    Raises: OSError in one line if the disk is full; earlier checkpoints are then unchanged.
    """
    from accelerate.utils import gather_object

    finish_saving(run)
    main = run.accelerator.is_main_process
    own = run_folder(run.params.output_dir, run.fingerprint)
    reshard(run.objective)
    if run.state.cursors:  # each rank knows the cursors of its own part of a stream
        gathered = gather_object([run.state.cursors])
        run.state.cursors = {position: cursor for part in gathered for position, cursor in part.items()}
    known = Gathered(points=points, random=_gather_random(run.accelerator), carried=run.data.state())
    if main:
        for later in (c for c in checkpoints(own) if step_of(c) > run.began_after and not run.has_saved):
            remove(later)  # leftovers of an earlier attempt, which this run replaces
    if run.sharded is not None and run.adapted is None:
        begin_saving(run, known)
        return
    folder = step_folder(own, run.state.global_step)
    weights = model_state(run.adapted or run.model, keep=main)
    moments = optimizer_state(run.inner_optimizer, run.model, keep=main)

    def write_files(temporary: Path) -> None:
        (run.adapted or run.model).save_pretrained(temporary, state_dict=weights)
        write_small_files(run, temporary, moments, known)

    if main:
        write_checkpoint(folder, run.state, write_files, size=checkpoint_bytes(run))
        tidy(run, own)
    run.accelerator.wait_for_everyone()
    run.last_checkpoint, run.has_saved = folder, True


def save_final_model(run: Run) -> None:
    """Write the final model to `dst` in Hugging Face format, with tokenizer and model card. All ranks call this."""
    main = run.accelerator.is_main_process
    reshard(run.objective)
    if run.sharded is not None and run.adapted is None:
        export_sharded(run)
        return
    weights = model_state(run.adapted or run.model, keep=main)
    if main:
        with new_folder(run.params.dst) as temporary:
            if run.adapted is None:
                run.model.save_pretrained(temporary, state_dict=weights)
            elif run.params.adapter.merge:
                run.adapted.save_pretrained(temporary / ADAPTER_FOLDER, state_dict=weights)
                dtype = DTYPES[run.params.param_dtype]
                whole: Any = merged(run.params.model, temporary / ADAPTER_FOLDER, dtype=dtype)
                for name in (*STORED_ATTENTION, "noise_type", "prompt_template"):
                    setattr(whole.config, name, getattr(run.model.config, name))
                whole.save_pretrained(temporary)
            else:
                save_adapters(run.adapted, run.model, temporary, base=run.params.model, weights=weights)
            run.tokenizer.save_pretrained(temporary)
            card = training_card(run.params, run.model.config, seed=int(run.fingerprint["seed"]), best=run.state.best)
            (temporary / CARD).write_text(card, encoding="utf-8")
            mark(temporary)
    run.accelerator.wait_for_everyone()


def restore(run: Run, checkpoint: Path) -> None:
    """Restore the run's state from `checkpoint`. The weights were already loaded with the model.

    The optimiser's settings and the learning rate follow the run's own parameters.
    Raises: CheckpointError in one line if a file contains anything but tensors and plain values.
    """
    stored = _load(checkpoint / "optimizer.pt", mapped=True)
    settings = [{k: v for k, v in group.items() if k != "params"} for group in run.inner_optimizer.param_groups]
    shards = checkpoint if is_sharded(checkpoint) else None
    group = None if shards is None else _group(run)
    load_optimizer_state(run.inner_optimizer, run.model, stored["optimizer"], shards=shards, group=group)
    for group, own in zip(run.inner_optimizer.param_groups, settings, strict=True):
        group.update(own)
    set_schedule(run.lr_schedule, run.state.global_step)
    if run.accelerator.scaler:
        run.accelerator.scaler.load_state_dict(stored["scaler"])
    random = _load(checkpoint / "random.pt")
    if len(random) == run.accelerator.num_processes:
        mine = random[run.accelerator.process_index]
        torch.set_rng_state(mine["cpu"])
        if run.device.type == "cuda" and mine["cuda"] is not None:
            torch.cuda.set_rng_state(mine["cuda"], run.device)
    else:
        # Only dropout uses these generators, and with another number of ranks its draws differ anyway.
        torch.manual_seed(run.data.settings.seed + run.state.global_step)
    run.points = list(read_jsonl(checkpoint / "curves.jsonl"))
    run.state.processes = run.accelerator.num_processes


def restored_data(checkpoint: Path) -> dict[str, Any] | None:
    """What the data of the run put into `checkpoint`; None for nothing. Raises: CheckpointError as `restore`."""
    return _load(checkpoint / DATA_FILE) if (checkpoint / DATA_FILE).is_file() else None


def _load(path: Path, *, mapped: bool = False) -> Any:
    """Load a `torch.save` file onto the CPU without executing anything in it. Raises: CheckpointError in one line.

    mapped: tensors stay in the file until they are used.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not tensors and plain values, nothing of it is run: {reason}") from error


def _group(run: Run) -> Any:
    """The ranks that read shards together; None: each for itself, because each needs all."""
    if run.sharded is None:
        return None
    run.shard_writer = run.shard_writer or ShardWriter(run.sharded.mesh)
    return run.shard_writer.group


def _gather_random(accelerator: "Accelerator") -> list[dict[str, Any]]:
    from accelerate.utils import gather_object

    cuda = torch.cuda.get_rng_state(accelerator.device) if accelerator.device.type == "cuda" else None
    return gather_object([{"cpu": torch.get_rng_state(), "cuda": cuda}])
