"""What CUDA graphs do, on the CPU: `work` is recorded as operations, and each replay runs them on the same memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result


class RecordedOperations:
    """In the place of `torch.cuda.CUDAGraph`."""

    def __init__(self, operations: list[tuple[Any, tuple, dict, Any]]) -> None:
        self.operations = operations
        self.replays = 0

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.operations:
            before = {x.untyped_storage().data_ptr() for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)}
            again = tree_flatten(func(*args, **kwargs))[0]
            for old, new in zip(tree_flatten(result)[0], again, strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in before:
                    old.data.copy_(new)  # not a view of an argument, and not changed in place


class RecorderOfOperations:
    """In the place of `GraphRecorder`."""

    def __init__(self) -> None:
        self.recording = False
        self.recorded = 0

    def record(self, work: Callable[[], Any]) -> tuple[RecordedOperations, Any]:
        self.recording = True
        try:
            with _Recording() as recording:
                result = work()
        finally:
            self.recording = False
        self.recorded += 1
        return RecordedOperations(recording.operations), result
