"""The peak with CUDA graphs, on a mock of torch's allocator. On a GPU it is tested in test_layer_graphs."""

import resource
from types import SimpleNamespace

import torch

from qwen3llada.training.cuda.graph_recorder import GraphRecorder, Pool
from qwen3llada.training.watch.peak_memory import PeakMemory


class Allocator:
    """Counts allocated bytes and their maximum. Memory of a captured graph is free again, but reserved."""

    def __init__(self, monkeypatch):
        self.allocated = self.peak = 0
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: self.begin())

    def begin(self):
        self.peak = self.allocated

    def use(self, size):
        """Allocate `size` and free it."""
        self.peak = max(self.peak, self.allocated + size)


class Graphs:
    def __init__(self):
        self.release()

    def record(self, kept):
        self.recorder.recorded += 1
        self.recorder.idle += kept

    def release(self):
        self.recorder = SimpleNamespace(recorded=0, idle=0, pool=lambda: Pool(total=0, idle=self.recorder.idle))


def test_what_graphs_keep_is_added_as_long_as_they_are_there(monkeypatch):
    allocator, graphs = Allocator(monkeypatch), Graphs()
    peak = PeakMemory(torch.device("cuda"), graphs)
    allocator.allocated = 10
    allocator.use(100)  # a step without graphs
    assert peak.read() == 110

    allocator.use(100)  # a step that is captured
    graphs.record(kept=100)
    assert peak.read() == 110

    allocator.allocated = 30  # the optimiser has allocated its moments
    allocator.use(5)
    assert peak.read() == 30 + 100 + 5

    graphs.release()
    assert peak.read() == 30 + 100 + 5
    allocator.use(120)  # another shape
    assert peak.read() == 30 + 120


def test_without_graphs_it_is_the_allocators_own(monkeypatch):
    allocator = Allocator(monkeypatch)
    peak = PeakMemory(torch.device("cuda"))
    allocator.use(7)
    allocator.use(5)
    assert peak.read() == 7


def test_on_a_cpu_it_is_that_of_the_process():
    peak, before = PeakMemory(torch.device("cpu")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak.read() >= before
    taken = torch.ones(before // 4 + 2**20)  # float32: more than the previous peak
    assert peak.read() >= taken.nbytes


def test_the_pool_is_the_graphs_own(monkeypatch):
    own, cached, samplers = (0, 3), (0, 0), (0, 4)
    segments = [
        {"segment_pool_id": cached, "total_size": 1000, "allocated_size": 1},
        {"segment_pool_id": own, "total_size": 500, "allocated_size": 400},
        {"segment_pool_id": own, "total_size": 70, "allocated_size": 0},
        {"segment_pool_id": samplers, "total_size": 50, "allocated_size": 0},
    ]
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: own)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert GraphRecorder().pool() == Pool(total=570, idle=170)
