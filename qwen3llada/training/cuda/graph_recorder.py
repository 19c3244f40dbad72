"""Capture of decoder layers as CUDA graphs that share one memory pool, and what is kept for each batch shape."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass
class LayerGraph:
    """A CUDA graph, its static input [B, L, D] and its static output [B, L, D]."""

    graph: torch.cuda.CUDAGraph
    given: Tensor
    result: Tensor

    def replay(self, given: Tensor) -> Tensor:
        """The graph's output for `given`. `given` is copied into the static input unless it already is that memory."""
        if given.data_ptr() != self.given.data_ptr():
            # `.data` hides the copy from autograd, which holds this tensor until the backward pass is captured.
            self.given.data.copy_(given)
        self.graph.replay()
        return self.result.detach()


class Inputs(NamedTuple):
    """What the first layer of a pass gets beside hidden states: rotary cos and sin [B or 1, L, d], and its mask: a
    tensor that broadcasts to [B, 1, L, L], a BlockMask, or None."""

    cos: Tensor
    sin: Tensor
    mask: Any


@dataclass
class StaticMask:
    """The mask that graphs read: a tensor in memory of its own, a BlockMask, or None."""

    static: Any
    given: Any  # the mask of this pass, once a layer has handed it over

    def take(self, mask: Any) -> bool:
        """Whether graphs may be replayed for `mask`. The first layer of a pass that hands over a tensor has it copied.

        Backward graphs read the mask again, so another mask of the same pass must not replace it.
        """
        if not isinstance(self.static, Tensor):
            return mask is self.static
        if not isinstance(mask, Tensor) or (mask.shape, mask.dtype) != (self.static.shape, self.static.dtype):
            return False
        if self.given is None:
            self.static.copy_(mask)
            self.given = mask
        return self.given is mask


@dataclass
class Pair:
    """Forward and backward graph of one layer for one batch shape."""

    forward: LayerGraph  # until `backward` is captured, its result holds the autograd graph
    parameters: list[nn.Parameter]  # aliases of the layer's parameters, needed to capture `backward`
    backward: LayerGraph | None = None


class GraphShape:
    """The graphs of all layers for one shape of the batch."""

    def __init__(self, cos: Tensor, sin: Tensor):
        self.rotary = (cos.clone(), sin.clone())
        self.masks: dict[int, StaticMask] = {}  # layer number -> its mask; layers of one policy share one
        self.pairs: dict[int, Pair] = {}  # layer number -> its graphs

    def begin_pass(self, cos: Tensor, sin: Tensor) -> None:
        """Copy the angles of this pass. Each mask is copied when the first layer hands it over."""
        for mine, given in zip(self.rotary, (cos, sin), strict=True):
            mine.copy_(given)
        for mask in self.masks.values():
            mask.given = None

    def take_mask(self, number: int, mask: Any) -> bool:
        """Whether the graphs of layer `number` may be replayed, or captured, for `mask`."""
        if number not in self.masks:
            handed_over = [known for known in self.masks.values() if known.given is mask]
            own = mask.clone() if isinstance(mask, Tensor) else mask
            self.masks[number] = handed_over[0] if handed_over else StaticMask(own, mask)
        return self.masks[number].take(mask)


class Pool(NamedTuple):
    """The graphs' shared memory pool, in bytes."""

    total: int
    idle: int  # holds no tensor now; only the graphs can use it


class ReplayedPass:
    """A forward pass that runs by graphs. Once the next pass begins, only its autograd nodes keep it alive."""

    def __init__(self, shape: GraphShape):
        self.shape = shape
        self.differentiated: set[int] = set()  # numbers of the layers whose backward pass has begun

    @property
    def is_over(self) -> bool:
        """Whether the backward pass has reached the first layer, after which activations may be overwritten."""
        return 0 in self.differentiated

    def begin_backward(self, number: int) -> None:
        """Note the backward pass of layer `number`. Raises RuntimeError if its activations may be overwritten."""
        if self.is_over or number in self.differentiated:
            raise RuntimeError(
                f"layer {number}: a second backward pass needs activations that CUDA graphs have overwritten;"
                " cuda_graphs=never keeps them under retain_graph=True"
            )
        self.differentiated.add(number)


class GraphRecorder:
    """Captures CUDA graphs on a side stream, all into one memory pool.

    Sharing a pool restricts the order of replays: no graph may overwrite memory that another one still needs.
    """

    def __init__(self) -> None:
        self.stream, self.pool_id = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self.recording = False
        self.recorded = 0

    def record(self, work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        """Capture what `work` launches, without running it. Each replay overwrites the memory of its result.

        Raises: RuntimeError in one line if `work` cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        self.recording = True
        try:
            with torch.cuda.stream(self.stream):
                # thread_local: other threads (data loader, NCCL) may call CUDA during the capture.
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
        """Current size of the pool."""
        segments = [s for s in torch.cuda.memory_snapshot() if s["segment_pool_id"] == self.pool_id]
        total = sum(segment["total_size"] for segment in segments)
        return Pool(total, total - sum(segment["allocated_size"] for segment in segments))
