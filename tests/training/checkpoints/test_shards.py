"""Shards of checkpoints: written in the background by all ranks, published when all are whole, read by any number."""

import errno
import json
import os
import pickle
import threading

import pytest
import torch
from runs import free_port, run_together
from torch import distributed as dist
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from qwen3llada.artifacts import FullDiskError, publish
from qwen3llada.training.checkpoints import background
from qwen3llada.training.checkpoints.background import ShardWriter
from qwen3llada.training.checkpoints.folder import CheckpointError
from qwen3llada.training.checkpoints.save_sharded import files_of
from qwen3llada.training.checkpoints.shards import METADATA, SHARDS, read

WHOLE = {"a": torch.arange(15.0).reshape(5, 3), "b": torch.arange(2.0) - 7}


def write_metadata(folder, content):
    (folder / SHARDS).mkdir()
    (folder / SHARDS / METADATA).write_bytes(content)


def test_poisoned_metadata_are_refused_in_one_line_and_not_run(tmp_path):
    class Poison:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    write_metadata(tmp_path, pickle.dumps(Poison()))
    with pytest.raises(
        CheckpointError, match=r"\.metadata: not the metadata of shards, nothing of it is run: "
    ) as error:
        read(tmp_path, {"a": torch.zeros(2)}, None)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "nothing of it is run"),
        (pickle.dumps({"a": 1}), "not the metadata of shards, but dict"),
        # torch would read such an entry by unpickling whatever is stored
        (pickle.dumps(Metadata({"a": BytesStorageMetadata()})), "does not belong"),
        (pickle.dumps(Metadata({})), "shards must hold a of shape"),
    ],
    ids=["empty", "dict", "bytes", "nothing"],
)
def test_metadata_of_something_else_are_refused(tmp_path, content, words):
    write_metadata(tmp_path, content)
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path, {"a": torch.zeros(2)}, None)


def test_tensors_are_divided_among_files_in_order():
    assert files_of({"a": 3, "b": 4}, limit=7) == {"model.safetensors": ["a", "b"]}
    assert files_of({"a": 3, "b": 4, "c": 9, "d": 1}, limit=7) == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c"],
        "model-00003-of-00003.safetensors": ["d"],
    }


@pytest.mark.slow
def test_two_ranks_write_in_the_background(tmp_path):
    run_together(2, check_writing, free_port(), tmp_path)


def check_writing(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    tensors = {key: distribute_tensor(value, mesh, [Shard(0)]) for key, value in WHOLE.items()}
    writer, temporary, final = ShardWriter(mesh), folder / ".step-2.partial", folder / "step-2"
    published = threading.Event()

    def begin(then=None):
        if rank == 0:
            (temporary / SHARDS).mkdir(parents=True, exist_ok=True)
        dist.barrier()
        published.clear()
        writer.write(temporary, tensors, then or finish, size=68)

    def finish(files):
        assert published.wait(20)
        (temporary / "files.json").write_text(json.dumps(files))
        publish(temporary, final)

    begin()
    for tensor in tensors.values():  # training goes on
        tensor.to_local().add_(100)
    assert not final.exists()
    published.set()
    writer.settle()
    assert sorted(json.loads((final / "files.json").read_text())) == [
        "shards/.metadata",
        "shards/__0_0.distcp",
        "shards/__1_0.distcp",
    ]
    check_read(final, mesh, 0)

    begin()  # the next one replaces it
    published.set()
    writer.settle()
    check_read(final, mesh, 100)

    whole_write = FileSystemWriter.write_data
    if rank == 1:
        FileSystemWriter.write_data = full_disk
    begin()
    with pytest.raises(FullDiskError, match=r"^no space left on the disk for .*/step-2, ") as error:
        writer.settle()
    assert error.value.errno == errno.ENOSPC
    check_read(final, mesh, 100)

    FileSystemWriter.write_data = whole_write
    begin(full_disk)  # after all shards are written
    with pytest.raises(FullDiskError, match=r"^no space left on the disk for .*/step-2, ") as error:
        writer.settle()
    assert error.value.errno == errno.ENOSPC
    check_read(final, mesh, 100)

    background.FILE_BYTES = 34  # what each rank has, so each writes two files
    begin()
    published.set()
    writer.settle()
    names = [f"__{rank}_{number}.distcp" for rank in range(2) for number in range(2)]
    assert sorted(path.name for path in (final / SHARDS).glob("*.distcp")) == names
    assert {f"shards/{name}" for name in names} < json.loads((final / "files.json").read_text()).keys()
    check_read(final, mesh, 100)

    background._fits_on_host = lambda size: False  # no memory for copies
    begin()
    for tensor in tensors.values():
        tensor.to_local().add_(100)
    published.set()
    writer.settle()
    check_read(final, mesh, 100)
    dist.destroy_process_group()


def check_read(final, mesh, more):
    """Both ranks read shards, and each reads whole tensors alone."""
    parts = {key: distribute_tensor(torch.zeros_like(value), mesh, [Shard(0)]) for key, value in WHOLE.items()}
    alone = {key: torch.zeros_like(value) for key, value in WHOLE.items()}
    dist.barrier()
    read(final, parts, dist.group.WORLD)
    read(final, alone, None)
    for key, value in WHOLE.items():
        torch.testing.assert_close(parts[key].full_tensor(), value + more, rtol=0, atol=0)
        torch.testing.assert_close(alone[key], value + more, rtol=0, atol=0)
    dist.barrier()


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
