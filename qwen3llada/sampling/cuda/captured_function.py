"""A function captured as a CUDA graph."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class CapturedFunction:
    """A function without arguments, captured as a CUDA graph. On a CPU the function itself is called."""

    def __init__(self, function: Callable[[], None], device: torch.device, pool: Any, *, warmup: int) -> None:
        self._function, self._graph = function, None
        if device.type != "cuda":
            return
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(warmup):
                function()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Captures failed now and then; with the collector off and thread-local capture mode none did.
        with _collector_at_rest(), torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            function()

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        else:
            self._function()


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Keep the garbage collector off in this context."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
