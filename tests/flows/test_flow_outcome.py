"""The meaning of dvc 3.67's messages. The lines are real output."""

import pytest

from flows.artifacts import compare
from flows.outcome import read_outcome
from flows.throttle import Throttle

SAVED = "stopped by SIGTERM: checkpoint saved at step 40 in out/step-40; the next run goes on from there"
STOPPED = [
    f"pretrain: 5%|5| 2/40 [00:01<00:09, 3.9step/s, loss=2]{SAVED}",
    "ERROR: failed to reproduce 'b': failed to run: x, exited with 75",
]


@pytest.mark.parametrize(
    ("status", "lines", "kind", "said"),
    [
        (0, ["Stage 'train' didn't change, skipping", "Data and pipelines are up to date."], "unchanged", ""),
        (0, ["Stage 'train' is cached - skipping run, checking out outputs"], "cached", ""),
        (0, ["Running stage 'train':", "> python train.py"], "ran", ""),
        (255, ["ERROR: failed to reproduce 'b': failed to run: x && y, exited with 75"], "stopped", "resumed"),
        (255, ["ERROR: failed to reproduce 'b': failed to run: x, exited with -9"], "killed", "signal 9"),
        (255, ["ERROR: failed to reproduce 'b': failed to run: x, exited with 137"], "killed", "signal 9"),
        (
            255,
            ["a:   0%|     | 0/40 [00:00<?, ?step/s]ERROR: failed to reproduce 'b': failed to run: x, exited with -9"],
            "killed",
            "signal 9",
        ),
        (
            255,
            [
                "pretrain:  5%|▌| 2/40 [00:01<00:09, 3.9step/s, loss=2]error: no b",
                "ERROR: failed to run: x, exited with 2",
            ],
            "failed",
            "2: error: no b",
        ),
        (255, ["error: no b", "ERROR: failed to reproduce 'b': failed to run: x, exited with 2"], "failed", "no b"),
        (
            255,
            ["ERROR: failed to reproduce 'b': '/b.txt' is busy, it is being blocked by:", " (PID 1)"],
            "busy",
            "busy",
        ),
        (255, ["ERROR: Unable to acquire lock. Most likely another DVC process is running"], "busy", "lock"),
        (255, ["ERROR: failed to reproduce 'b': output 'b.txt' does not exist"], "failed", "does not exist"),
        (
            255,
            ["error: x: Connection reset by peer", "ERROR: failed to reproduce 'd': failed to run: d, exited with 1"],
            "network",
            "reset",
        ),
        (
            255,
            ["error: HTTPSConnectionPool: Max retries exceeded", "ERROR: … failed to run: d, exited with 1"],
            "network",
            "retries",
        ),
        # what a stage said long ago, or dvc's command line, is no reason
        (
            255,
            ["lost: connection reset", "error: bad data", "ERROR: … failed to run: d, exited with 1"],
            "failed",
            "bad data",
        ),
        (255, ["ERROR: … failed to run: x --connection refused, exited with 1"], "failed", "no message"),
        (137, [], "killed", "dvc was killed by signal 9"),
        (124, [], "timeout", "timeout_minutes"),
        (143, [], "cancelled", "stopped before it was done"),
        (255, STOPPED, "stopped", f"{SAVED} (exit status 75)"),
        (143, STOPPED, "cancelled", SAVED),
        (124, STOPPED, "timeout", f"allows; {SAVED}"),
    ],
)
def test_outcomes(status, lines, kind, said):
    outcome = read_outcome(status, lines)
    assert outcome.kind == kind
    assert said in outcome.message
    assert outcome.ok == (status == 0)
    assert outcome.worth_retrying == (kind in ("stopped", "killed", "busy", "network"))


def test_metrics_that_changed_come_first():
    before = {"a": 1.0, "b": True, "c": 3, "gone": 4}
    after = {"a": 1.0, "b": True, "c": 5, "new": "x"}
    assert compare(before, after) == [
        {"metric": "c", "before": 3, "now": 5, "change": 2},
        {"metric": "gone", "before": 4, "now": None, "change": None},
        {"metric": "new", "before": None, "now": "x", "change": None},
        {"metric": "a", "before": 1.0, "now": 1.0, "change": 0.0},
        {"metric": "b", "before": True, "now": True, "change": None},
    ]


class TestThrottle:
    def run(self, chunks, **options):
        batches = []
        throttle = Throttle(batches.append, **options)
        for chunk in chunks:
            throttle.feed(chunk)
        throttle.close()
        return batches, throttle

    def test_lines_are_whole_whatever_the_chunks(self):
        text = "one\ntwo é\n\nthree".encode()
        for size in (1, 2, 3, 50):
            batches, throttle = self.run([text[i : i + size] for i in range(0, len(text), size)], seconds=0)
            assert [line for batch in batches for line in batch] == ["one", "two é", "", "three"] == throttle.tail

    def test_many_lines_are_few_records(self):
        batches, _ = self.run([b"line\n"] * 20_000, seconds=60, longest=50)
        assert len(batches) == 2  # the first at once, the rest at the end
        assert batches[1] == ["line"] * 25 + ["… 19949 lines left out …"] + ["line"] * 25

    def test_a_progress_bar_that_does_not_move_is_shown_once(self):
        batches = []
        throttle = Throttle(batches.append, seconds=0)
        for data in (b"\r5%|", b"", b"", b"\r6%|", b"\r", b""):
            throttle.feed(data)
        throttle.close()
        assert [line for batch in batches for line in batch] == ["5%|", "6%|"]

    def test_of_a_progress_bar_the_newest_state_is_shown(self):
        chunks = [f"{i}%|\r".encode() for i in range(100)]
        batches, _ = self.run([*chunks, b"done\n"], seconds=60)
        assert batches == [["0%|"], ["done"]]
