"""Sharded tensors of a checkpoint, in the format of torch's distributed checkpoints (DCP).

    step-{N}/shards/.metadata         which part of which tensor lies where
                    __{rank}_{n}.distcp the parts that this rank held

Each rank writes what it holds. Any number of ranks can read, each the parts that it needs; so can a process alone.
`.metadata` is a pickle, and torch would run whatever it contains. It is read here by an unpickler that knows only the
classes of such a file.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.staging import AsyncStager

from qwen3llada.training.checkpoints.folder import CheckpointError

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

SHARDS = "shards"
METADATA = ".metadata"
# What a metadata file consists of: (module, name), by torch 2.11 to 2.15.
_CHECKPOINT = "torch.distributed.checkpoint"
KNOWN = {
    *((f"{_CHECKPOINT}.metadata", name) for name in ("Metadata", "TensorStorageMetadata", "ChunkStorageMetadata")),
    *((f"{_CHECKPOINT}.metadata", name) for name in ("TensorProperties", "MetadataIndex", "StorageMeta")),
    *((f"{_CHECKPOINT}.metadata", name) for name in ("_MEM_FORMAT_ENCODING",)),
    *((f"{_CHECKPOINT}.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    *(("torch", name) for name in ("Size", "float32", "float16", "bfloat16", "strided")),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


def is_sharded(checkpoint: Path) -> bool:
    """Whether the tensors of a checkpoint are in shards, rather than whole in safetensors and optimizer.pt."""
    return (checkpoint / SHARDS).is_dir()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by their key in the shards."""
    return {f"weights.{name}": parameter for name, parameter in model.named_parameters()}


def moment(name: str, key: str) -> str:
    """The key of `exp_avg` or `exp_avg_sq` (`key`) of the parameter `name`."""
    return f"moments.{name}.{key}"


def own_files(checkpoint: Path, rank: int) -> list[Path]:
    """The files of shards that `rank` has written. The first rank also writes the metadata."""
    metadata = [checkpoint / SHARDS / METADATA] if rank == 0 else []
    return metadata + sorted((checkpoint / SHARDS).glob(f"__{rank}_*.distcp"))


@torch.no_grad()
def read(checkpoint: Path, tensors: Mapping[str, Tensor], group: "dist.ProcessGroup | None") -> None:
    """Fill `tensors`, sharded or whole, from the shards. All ranks of `group` must call this; None: this one alone.

    Raises: CheckpointError in one line if the metadata contain anything but metadata, or lack one of the tensors.
    """
    import torch.distributed.checkpoint as dcp

    reader = Reader(checkpoint / SHARDS)
    stored = reader.read_metadata().state_dict_metadata
    for key, tensor in tensors.items():
        found = stored.get(key)
        if not isinstance(found, TensorStorageMetadata) or found.size != tensor.shape:
            raise CheckpointError(f"{checkpoint}: {SHARDS} must hold {key} of shape {list(tensor.shape)}")
    given = {key: tensor.detach() for key, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is asked for here
        dcp.load(given, storage_reader=reader, process_group=group, no_dist=group is None)


class Reader(FileSystemReader):
    """Reads metadata without running anything that they contain."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / METADATA
        try:
            with open(path, "rb") as file:
                metadata = _Unpickler(file).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: not the metadata of shards, nothing of it is run: {reason}") from error
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{path}: not the metadata of shards, but {type(metadata).__name__}")
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong into such a file")
        return super().find_class(module, name)


class Stager(AsyncStager):
    """Copies shards to the host, so that training goes on while they are written.

    The copies stay allocated for the next checkpoint; beside a GPU in pinned memory, which the first time takes longer.
    """

    _synchronize_after_execute = False

    def __init__(self, mesh: "DeviceMesh"):
        """All ranks must call this. `mesh`: of the sharded parameters."""
        from torch.distributed.device_mesh import init_device_mesh

        self.mesh = init_device_mesh("cpu", tuple(mesh.shape), mesh_dim_names=mesh.mesh_dim_names)
        self.copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """{key: sharded tensor} with the local parts on the host. Waits until they are copied."""
        from torch.distributed.tensor import DTensor

        staged = {}
        for key, tensor in state_dict.items():
            local = tensor.to_local()
            if key not in self.copies:
                self.copies[key] = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
            copy = self.copies[key].copy_(local, non_blocking=True)
            where = {"shape": tensor.shape, "stride": tensor.stride(), "run_check": False}
            staged[key] = DTensor.from_local(copy, self.mesh, tensor.placements, **where)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return staged
