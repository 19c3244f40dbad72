"""Writing a safetensors file a piece of a tensor at a time, so that memory does not grow with the file."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BYTES = {"F32": 4, "F16": 2, "BF16": 2}
ALIGNMENT = 8  # of the header, by the format


@dataclass(frozen=True, kw_only=True)
class StreamedTensor:
    """A tensor that is to be written: `chunks()` gives its rows in order. `dtype` is safetensors' name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: "Callable[[], Iterable[Tensor]]"

    @property
    def bytes(self) -> int:
        return prod(self.shape) * BYTES[self.dtype]


def write_tensors(path: Path, tensors: Sequence[StreamedTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: the length of its header, the header in JSON, the tensors' bytes in order.

    Raises: ValueError if the chunks of a tensor are not what its shape and type say; OSError when the disk is full.
    """
    import torch

    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.bytes],
        }
        end += tensor.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            before = file.tell()
            for chunk in tensor.chunks():
                file.write(chunk.contiguous().flatten().view(torch.uint8).numpy().data)
            if file.tell() - before != tensor.bytes:
                raise ValueError(f"{tensor.name}: {file.tell() - before} bytes written, must be {tensor.bytes}")
