"""Checkpoints of a sharded run: each rank writes its shards, in the background, and rank 0 publishes the folder.

The folder gets its final name only when all ranks have written and flushed their files, and rank 0 has written the
state with the hashes of all. A process killed before leaves a temporary folder, which the next run removes.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from qwen3llada.artifacts import FullDiskError, full_disk_named
from qwen3llada.training.checkpoints.fingerprint import HASH_THREADS
from qwen3llada.training.checkpoints.folder import describe_files
from qwen3llada.training.checkpoints.shards import SHARDS, Stager, own_files

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Files = dict[str, dict[str, Any]]
FILE_BYTES = 2**30  # of a rank's shards, for which it writes one more file: files are written and hashed side by side


class ShardWriter:
    """Writes the shards of one checkpoint at a time. All ranks must call each method."""

    def __init__(self, mesh: "DeviceMesh"):
        """`mesh`: of the sharded parameters."""
        self.mesh = mesh
        # Collectives of the background thread need a group of their own, and one for tensors on the host.
        self.group = dist.new_group(backend="gloo")
        self.stager: Stager | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(
        self, temporary: Path, tensors: dict[str, Tensor], publish: Callable[[Files], None], *, size: int
    ) -> None:
        """Copy `tensors` to the host and begin to write them to `temporary`, which exists. `settle` must come before.

        If the host lacks the memory for the copies, this writes them without copies, and returns when they are written.

        Args:
            publish: called on rank 0 with size and hash of the shards' files, when all have been written.
            size: bytes of `tensors`, over all ranks.
        """
        import torch.distributed.checkpoint as dcp

        assert self._thread is None
        staged = _fits_on_host(size)
        ahead = 0 if staged else 10_000_000  # bytes that are copied from the device while others are written
        count = min(HASH_THREADS, 1 + size // dist.get_world_size() // FILE_BYTES)
        writer = dcp.FileSystemWriter(temporary / SHARDS, thread_count=count, per_thread_copy_ahead=ahead)
        future: Any
        if staged:
            self.stager = self.stager or Stager(self.mesh)
            future = dcp.async_save(tensors, storage_writer=writer, process_group=self.group, async_stager=self.stager)
        else:
            future = Future()
            try:
                future.set_result(dcp.save(tensors, storage_writer=writer, process_group=self.group))
            except Exception as error:
                future.set_exception(error)
        self._thread = threading.Thread(target=self._complete, args=(future, temporary, publish), name="checkpoint")
        self._thread.start()

    def settle(self) -> None:
        """Wait for the checkpoint in flight, if there is one.

        Raises: what went wrong, on all ranks; OSError in one line if the disk is full.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error

    def _complete(self, future: Any, temporary: Path, publish: Callable[[Files], None]) -> None:
        """Wait for all ranks' files, then publish. In a thread of its own."""
        try:
            files: Files = {}

            def describe() -> None:
                _result(future)
                files.update(describe_files(temporary, own_files(temporary, dist.get_rank())))

            self._together(temporary, describe)
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, files, group=self.group)
            everything = {name: file for part in gathered for name, file in part.items()}
            self._together(temporary, lambda: publish(everything) if dist.get_rank() == 0 else None)
        except BaseException as error:  # raised in the main thread, by `settle`
            self._error = error

    def _together(self, temporary: Path, work: Callable[[], Any]) -> None:
        """Do `work`. Raises on all ranks what it raised on one."""
        error: Exception | None = None
        try:
            with full_disk_named(temporary.parent / temporary.name.removeprefix(".").removesuffix(".partial")):
                work()
        except Exception as caught:
            error = caught
        found = None if error is None else (str(error), getattr(error, "errno", None))
        errors: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, found, group=self.group)
        if error is not None:
            raise error
        for other in errors:
            if other is not None:
                message, number = other
                clear = FullDiskError(message) if number is not None else RuntimeError(message)
                if isinstance(clear, OSError):
                    clear.errno = number
                raise clear


def _result(future: Any) -> None:
    """Wait for torch's writers. Raises the first rank's own error instead of torch's collection of all of them."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        future.result()
    except CheckpointException as error:
        first, _ = next(iter(error.failures.values()))
        raise first from error


def _fits_on_host(size: int) -> bool:
    """Whether the host has memory for copies of its share of `size` bytes, and a half more: pinned memory is larger."""
    import os

    import psutil

    here = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    share = size * here / dist.get_world_size()
    return psutil.virtual_memory().available > 1.5 * share
