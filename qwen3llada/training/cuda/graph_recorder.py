"""CUDA graphs of layers that share their memory: recording them, and what is recorded for a shape of the batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass
class Recorded:
    """A graph, the memory [B, L, D] that it reads, and the memory [B, L, D] that it writes."""

    graph: torch.cuda.CUDAGraph
    given: Tensor
    result: Tensor

    def replay(self, given: Tensor) -> Tensor:
        """What the graph makes of `given`, which is copied unless it is there already."""
        if given.data_ptr() != self.given.data_ptr():
            # Unnoticed by autograd, which has saved it until the backward pass is recorded.
            self.given.data.copy_(given)
        self.graph.replay()
        return self.result.detach()


class Inputs(NamedTuple):
    """What all layers of a forward pass see alike: angles [B or 1, L, d], and a mask that broadcasts to [B,1,L,L]."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None


@dataclass
class Pair:
    """The two passes of a layer for one shape."""

    forward: Recorded  # its result holds what the backward pass needs, until that is recorded
    parameters: list[nn.Parameter]  # the layer's, in the same memory, for that
    backward: Recorded | None = None


class Shape:
    """The graphs of all layers for one shape of the batch."""

    def __init__(self, inputs: Inputs):
        self.inputs = Inputs(*(None if tensor is None else tensor.clone() for tensor in inputs))
        self.pairs: dict[int, Pair] = {}  # by the layer's number


class Pool(NamedTuple):
    """The memory that graphs share, in bytes."""

    total: int
    idle: int  # holds no tensor now; nothing but the graphs can use it


class Recorder:
    """Records what is launched, on a stream of its own and into one memory for all graphs.

    They may therefore only be replayed in an order in which none is needed any more when another overwrites it.
    """

    def __init__(self) -> None:
        self.stream, self.pool_id = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self.recording = False
        self.recorded = 0

    def record(self, work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """Record what `work` launches without running it; its result lies in memory that each replay fills anew.

        Raises: RuntimeError in one line if something in it cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        self.recording = True
        try:
            with torch.cuda.stream(self.stream):
                # Other threads (of the loader, of NCCL) may use the device as they like.
                graph.capture_begin(pool=self.pool_id, capture_error_mode="thread_local")
                result = work()
                graph.capture_end()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = str(error).split("\n")[0]
            raise RuntimeError(
                f"a decoder layer could not be recorded as a CUDA graph: {reason}; cuda_graphs=never trains without"
            ) from error
        finally:
            self.recording = False
        torch.cuda.current_stream().wait_stream(self.stream)
        self.recorded += 1
        return graph, result

    def pool(self) -> Pool:
        """What the graphs' memory is now."""
        segments = [s for s in torch.cuda.memory_snapshot() if s["segment_pool_id"] == self.pool_id]
        total = sum(segment["total_size"] for segment in segments)
        return Pool(total, total - sum(segment["allocated_size"] for segment in segments))
