"""The safetensors files of a checkpoint: names, shapes and dtypes from their headers, values in chunks."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3llada.artifacts import read_json
from qwen3llada.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """File, shape and dtype of a tensor. `dtype` is safetensors' name (BF16, F32, …)."""

    file: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Shards:
    """The weight files of a checkpoint and their tensors, in the files' order."""

    folder: Path
    tensors: dict[str, TensorInfo]
    index: dict[str, Any] | None  # content of INDEX, if there is one

    @property
    def files(self) -> list[str]:
        return sorted({tensor.file for tensor in self.tensors.values()})

    @property
    def bytes(self) -> int:
        return sum((self.folder / file).stat().st_size for file in self.files)

    def load(self, file: str) -> "tuple[dict[str, Tensor], dict[str, str] | None]":
        """All tensors of one file, and its metadata."""
        with opened(self.folder / file) as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}, reader.metadata()  # noqa: SIM118

    def chunks(self, name: str, rows: int) -> "Iterator[Tensor]":
        """The tensor in slices of at most `rows` along its first axis; a scalar as a whole."""
        tensor = self.tensors[name]
        with opened(self.folder / tensor.file) as reader:
            if not tensor.shape:
                yield reader.get_tensor(name)
                return
            view = reader.get_slice(name)
            for start in range(0, tensor.shape[0], rows):
                yield view[start : start + rows]


def find_shards(folder: Path) -> Shards:
    """Read the headers of the folder's safetensors files: one `model.safetensors`, or those named in the index.

    Raises: FileNotFoundError for a missing file; InputError naming a truncated or corrupt file, or a tensor on which
    index and files disagree.
    """
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        where = index.get("weight_map") if isinstance(index, dict) else None
        if not where or not isinstance(where, dict):
            raise InputError(f"{folder / INDEX}: must have a weight_map from tensor names to file names")
        files = sorted(set(where.values()))
    elif (folder / SINGLE).is_file():
        index, where, files = None, None, [SINGLE]
    else:
        raise FileNotFoundError(f"{folder}: has neither {SINGLE} nor {INDEX}; only safetensors checkpoints can be read")
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        if Path(file).name != file:
            raise InputError(f"{folder / INDEX}: {file!r} must be the name of a file in the same folder")
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file}: named in {INDEX}, but missing")
        for name, tensor in _header(folder, file):
            if name in tensors:
                raise InputError(f"{folder / file}: tensor {name} is in {tensors[name].file}, too")
            tensors[name] = tensor
    if where is not None and (wrong := sorted(set(where) ^ set(tensors))):
        raise InputError(f"{folder / INDEX}: {len(wrong)} tensors are not both in it and in the files: {wrong[0]}, …")
    return Shards(folder, tensors, index)


def _header(folder: Path, file: str) -> list[tuple[str, TensorInfo]]:
    with opened(folder / file) as reader:
        slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118
        return [(n, TensorInfo(file, tuple(s.get_shape()), str(s.get_dtype()))) for n, s in slices.items()]


def opened(path: Path) -> Any:
    """`safe_open`, as a context manager. Raises InputError naming a file with an invalid header or length."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise InputError(f"{path}: truncated or corrupt safetensors file ({error})") from error
