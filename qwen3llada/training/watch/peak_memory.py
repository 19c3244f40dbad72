"""The most memory that a run has taken."""

import resource
import sys
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from qwen3llada.training.cuda.graph_recorder import Recorder
    from qwen3llada.training.cuda.layer_graphs import LayerGraphs


class PeakMemory:
    """On a GPU what tensors took and CUDA graphs keep for themselves; on a CPU what the process took, as a whole.

    Torch counts a graph's memory only while it records the graph, though nothing else may use it later. So whenever
    graphs have come or gone its own maximum is begun anew, and what the present ones keep is added to it.
    """

    def __init__(self, device: torch.device, graphs: "LayerGraphs | None" = None):
        self.device, self.graphs = device, graphs
        self._most = 0
        self._kept = 0
        self._recorded: tuple[Recorder, int] | None = None

    def read(self) -> int:
        """Bytes, since the beginning of the process."""
        if self.device.type != "cuda":
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        recorder = self.graphs.recorder if self.graphs else None
        if recorder and (recorder, recorder.recorded) != self._recorded:
            self._most = max(self._most, torch.cuda.max_memory_allocated(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)
            self._recorded, self._kept = (recorder, recorder.recorded), recorder.pool().idle
        self._most = max(self._most, torch.cuda.max_memory_allocated(self.device) + self._kept)
        return self._most
