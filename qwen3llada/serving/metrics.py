"""Counts and times of the server in Prometheus' text format (version 0.0.4)."""

import threading
from collections import Counter

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)  # seconds
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters that any thread may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._answers = self._tokens = self._passes = self._rows = self._groups = self._grouped = self._eager = 0
        self._seconds, self._buckets = 0.0, [0] * len(BUCKETS)

    def request(self, path: str, status: int) -> None:
        """A request was answered, or its stream began, with a status."""
        with self._lock:
            self._requests[path, status] += 1

    def passes(self, count: int, rows: int) -> None:
        """So many forward passes took so many answers one step on."""
        with self._lock:
            self._passes += count
            self._rows += rows

    def group(self, answers: int) -> None:
        """A group of answers began that cannot be in the running batch."""
        with self._lock:
            self._groups += 1
            self._grouped += answers

    def eager(self) -> None:
        """An answer has entered the running batch that is decoded without CUDA graphs."""
        with self._lock:
            self._eager += 1

    def answer(self, seconds: float, tokens: int) -> None:
        """An answer is complete, so long after its request came."""
        with self._lock:
            self._answers += 1
            self._tokens += tokens
            self._seconds += seconds
            for i, bound in enumerate(BUCKETS):
                self._buckets[i] += seconds <= bound

    def text(self, *, waiting: int, decoding: int) -> str:
        """All of it. `waiting`: answers that are queued now; `decoding`: that are being decoded."""
        with self._lock:
            lines = ["# TYPE qwen3llada_requests_total counter"]
            for (path, status), count in sorted(self._requests.items()):
                lines.append(f'qwen3llada_requests_total{{path="{path}",status="{status}"}} {count}')
            for name, value in (
                ("answers", self._answers),
                ("tokens", self._tokens),
                ("passes", self._passes),
                ("pass_rows", self._rows),
                ("groups", self._groups),
                ("group_rows", self._grouped),
                ("eager_answers", self._eager),
            ):
                lines += [f"# TYPE qwen3llada_{name}_total counter", f"qwen3llada_{name}_total {value}"]
            for name, value in (("waiting", waiting), ("decoding", decoding)):
                lines += [f"# TYPE qwen3llada_{name} gauge", f"qwen3llada_{name} {value}"]
            lines.append("# TYPE qwen3llada_answer_seconds histogram")
            for bound, count in zip(BUCKETS, self._buckets, strict=True):
                lines.append(f'qwen3llada_answer_seconds_bucket{{le="{bound}"}} {count}')
            lines.append(f'qwen3llada_answer_seconds_bucket{{le="+Inf"}} {self._answers}')
            lines += [
                f"qwen3llada_answer_seconds_sum {self._seconds}",
                f"qwen3llada_answer_seconds_count {self._answers}",
            ]
        return "\n".join(lines) + "\n"
