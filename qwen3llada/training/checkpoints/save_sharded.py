"""Saving under FSDP2: checkpoints of shards, written in the background, and the final model one file at a time.

No process holds more of the model than its shards, one whole tensor, and one file of the final model.
"""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from qwen3llada.artifacts import full_disk_named, mark, new_folder, publish
from qwen3llada.artifacts.on_disk import remove
from qwen3llada.errors import InputError
from qwen3llada.training.checkpoints.background import Files, ShardWriter
from qwen3llada.training.checkpoints.contents import Gathered, checkpoint_bytes, tidy, write_small_files
from qwen3llada.training.checkpoints.folder import describe_files, run_folder, step_folder, write_state
from qwen3llada.training.checkpoints.shards import SHARDS, weights
from qwen3llada.training.checkpoints.whole_tensors import optimizer_shards, whole
from qwen3llada.training.model_card import CARD, training_card
from qwen3llada.training.run import Run

FILE_BYTES = 4 * 2**30  # of a file of the final model, which exists once on the host of rank 0


def begin_saving(run: Run, known: Gathered) -> None:
    """Write the small files, copy the shards to the host, and begin to write them. All ranks must call this.

    Raises: OSError in one line, on all ranks, if the disk is full.
    """
    assert run.sharded is not None
    run.shard_writer = run.shard_writer or ShardWriter(run.sharded.mesh)
    own = run_folder(run.params.output_dir, run.fingerprint)
    folder = step_folder(own, run.state.global_step)
    temporary = folder.parent / f".{folder.name}.partial"  # as `new_folder`, so that the next run collects it
    moments, shards = optimizer_shards(run.inner_optimizer, run.model)
    size = checkpoint_bytes(run)
    state = asdict(run.state)  # the run goes on while the shards are written

    def small_files() -> None:
        remove(temporary)
        with full_disk_named(folder, size):
            (temporary / SHARDS).mkdir(parents=True)
            run.model.save_pretrained(temporary, state_dict={})
            write_small_files(run, temporary, moments, known)

    _on_main(run, small_files)
    small = [path for path in temporary.rglob("*") if path.is_file()]

    def publish_all(files: Files) -> None:
        write_state(temporary, state, files | describe_files(temporary, small))
        publish(temporary, folder)
        tidy(run, own)

    run.saving = folder
    run.shard_writer.write(temporary, weights(run.model) | shards, publish_all, size=size)


def finish_saving(run: Run) -> None:
    """Wait until the checkpoint in flight, if there is one, is whole. All ranks must call this.

    Raises: what went wrong, on all ranks; OSError in one line if the disk is full. The temporary folder is then
    removed.
    """
    if run.saving is None or run.shard_writer is None:
        return
    folder, run.saving = run.saving, None
    try:
        run.shard_writer.settle()
    except BaseException:
        if run.accelerator.is_main_process:
            remove(folder.parent / f".{folder.name}.partial")
        raise
    run.last_checkpoint, run.has_saved = folder, True


def export_sharded(run: Run) -> None:
    """Write the final model to `dst`, gathering one tensor at a time. All ranks must call this."""
    main = run.accelerator.is_main_process
    parameters = dict(run.model.named_parameters())
    files = files_of({name: p.numel() * p.element_size() for name, p in parameters.items()}, FILE_BYTES)
    with new_folder(run.params.dst) if main else nullcontext(Path()) as temporary:
        if main:
            run.model.save_pretrained(temporary, state_dict={})
        for file, names in files.items():
            gathered = {name: whole(parameters[name], keep=main) for name in names}
            if main:
                _write(temporary / file, gathered)
        if main:
            if len(files) > 1:
                where = {name: file for file, names in files.items() for name in names}
                total = sum(p.numel() * p.element_size() for p in parameters.values())
                index = {"metadata": {"total_size": total}, "weight_map": where}
                (temporary / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
            run.tokenizer.save_pretrained(temporary)
            card = training_card(run.params, run.model.config, seed=int(run.fingerprint["seed"]), best=run.state.best)
            (temporary / CARD).write_text(card, encoding="utf-8")
            mark(temporary)
    run.accelerator.wait_for_everyone()


def files_of(sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
    """{file name: names of its tensors}, in order; files of at most `limit` bytes, or of one tensor."""
    files: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if files[-1] and filled + size > limit:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    return {f"model-{n + 1:05}-of-{len(files):05}.safetensors": names for n, names in enumerate(files)}


def _write(path: Path, tensors: dict[str, Tensor | None]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata={"format": "pt"})


def _on_main(run: Run, work: Any) -> None:
    """Do `work` on rank 0. Raises on all ranks what it raised there."""
    from accelerate.utils import broadcast_object_list

    failed: list[Any] = [None]
    error: OSError | InputError | None = None
    if run.accelerator.is_main_process:
        try:
            work()
        except (OSError, InputError) as caught:
            error, failed = caught, [(str(caught), getattr(caught, "errno", None))]
    if run.accelerator.num_processes > 1:
        broadcast_object_list(failed)
    if error is not None:
        raise error
    if failed[0] is not None:
        message, number = failed[0]
        other = OSError(message)
        other.errno = number
        raise other
