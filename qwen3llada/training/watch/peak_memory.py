"""Peak memory of a run."""

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from qwen3llada.training.cuda.graph_recorder import GraphRecorder
    from qwen3llada.training.cuda.layer_graphs import LayerGraphs


def _most_resident_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Resident memory of this process now; its peak so far where the system has no /proc."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() if pages.is_file() else _most_resident_bytes()


class PeakMemory:
    """On a GPU: memory of tensors and of CUDA graphs. On a CPU: resident memory of the process.

    PyTorch counts a graph's memory only during capture, although nothing else may use it afterwards. So whenever graphs
    were captured or released, the peak statistics are reset, and the memory that the current graphs hold is added.
    """

    def __init__(self, device: torch.device, graphs: "LayerGraphs | None" = None):
        self.device, self.graphs = device, graphs
        self._most = 0
        self._kept = 0
        self._recorded: tuple[GraphRecorder, int] | None = None

    def read(self) -> int:
        """Bytes since the start of the process."""
        if self.device.type != "cuda":
            return _most_resident_bytes()
        recorder = self.graphs.recorder if self.graphs else None
        if recorder and (recorder, recorder.recorded) != self._recorded:
            self._most = max(self._most, torch.cuda.max_memory_allocated(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)
            self._recorded, self._kept = (recorder, recorder.recorded), recorder.pool().idle
        self._most = max(self._most, torch.cuda.max_memory_allocated(self.device) + self._kept)
        return self._most
