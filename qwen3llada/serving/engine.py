"""How answers are decoded together: in one running batch where they can share passes, else in groups.

The running batch takes in an answer before any pass and lets it go after any, whatever its parameters are. A group is a
batch of answers with equal parameters that runs to its end: blocks that are decoded at once (`parallel_blocks`), and
the approximate cache (`cache: dual`). Both run at the same time, a pass of each in turn.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qwen3llada.errors import InputError
from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.decoding import Step, decode
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.remasking import UnmaskPlan
from qwen3llada.sampling.request import Request, make_request
from qwen3llada.sampling.running_batch import Row, RunningBatch, shares_passes, why_eager
from qwen3llada.sampling.running_row import RunningRow
from qwen3llada.serving.jobs import Job
from qwen3llada.serving.metrics import Metrics

log = logging.getLogger(__name__)


class Engine:
    """What is decoded now. Used by one thread."""

    def __init__(self, text: TextModel, *, max_batch: int, metrics: Metrics) -> None:
        self.text, self.max_batch, self.metrics = text, max_batch, metrics
        self._batch, self._rows = RunningBatch(text.model), dict[RunningRow, Job]()
        self._mask = text.model.config.mask_token_id
        self._group: list[Job] = []
        self._group_steps: Generator[Step, None, Any] | None = None

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._group)

    @property
    def running(self) -> int:
        """Answers that are being decoded."""
        return len(self._rows) + len(self._group)

    def take(self, waiting: deque[Job]) -> list[Job]:
        """Remove from the queue what can start now, oldest first: into the running batch, and as the next group."""
        taken, left, free = list[Job](), deque[Job](), self.max_batch - len(self._rows)
        kind, places = None, 0 if self._group else self.max_batch
        for job in waiting:
            if self._shares(job):
                fits, free = free > 0, free - 1
            elif fits := places > 0 and kind in (None, job.kind):
                kind, places = job.kind, places - 1
            (taken if fits else left).append(job)
        waiting.clear()
        waiting.extend(left)
        return taken

    def _shares(self, job: Job) -> bool:
        """Whether a job goes into the running batch. Decided once: a job that waits is asked before every pass."""
        if job.shares is None:
            job.shares = self._can_share(job)
        return job.shares

    def _can_share(self, job: Job) -> bool:
        """All that can. Where graphs are demanded and there are none, the sampler gives the error."""
        if not shares_passes(job.params) or job.params.backend != "graph":
            return shares_passes(job.params)
        try:
            return why_eager(self.text.model, self._request([job], "cpu")) is None
        except InputError:
            return True  # `start` gives the job its error

    def start(self, jobs: list[Job]) -> None:
        """Begin with what `take` gave."""
        for job in jobs:
            if self._shares(job):
                with failing(lambda job=job: [job]):  # type: ignore[misc]
                    self._enter(job)
            else:
                self._group.append(job)
        if self._group and self._group_steps is None:
            self.metrics.group(len(self._group))
            with failing(self._drop_group):
                self._group_steps = decode(self.text.model, self._request(self._group))

    def _enter(self, job: Job) -> None:
        row = self._batch.enter(self._request([job], "cpu"))  # a canvas on the device would wait for it
        self._rows[row] = job
        if isinstance(row, Row):
            self.metrics.eager()

    def step(self) -> None:
        """One pass of the running batch, and one of the group."""
        with failing(self._drop_batch):
            self._step_batch()
        with failing(self._drop_group):
            self._step_group()

    def _step_batch(self) -> None:
        for row in [row for row, job in self._rows.items() if job.cancelled]:
            self._leave(row)
        if not self._rows:
            return
        before = self._batch.passes
        rows = self._batch.step()
        self.metrics.passes(self._batch.passes - before, len(rows))
        for row in rows:
            job, settled = self._rows[row], None if row.settled is None else row.settled[0]
            self._tell(job, row.answer_columns, row.tokens[0], settled, row.confidence[0])
            if row.finished and not job.over:
                raise RuntimeError("a row has ended before its answer")
            if job.over:
                self._leave(row)

    def _leave(self, row: RunningRow) -> None:
        self._batch.leave(row)
        del self._rows[row]

    def _step_group(self) -> None:
        step = None
        if self._group_steps is not None and not all(job.over for job in self._group):
            step = next(self._group_steps, None)
        if step is None:
            self._drop_group()
            return
        self.metrics.passes(1, len(self._group))
        start = max(len(job.prompt) for job in self._group)
        for row, job in enumerate(self._group):
            columns, settled = slice(start, start + job.params.gen_length), None
            if step.settled is not None:
                settled = step.settled[row]
            self._tell(job, columns, step.canvas[row], settled, step.confidence[row])

    def _tell(self, job: Job, answer: slice, tokens: Tensor, settled: Tensor | None, sure: Tensor) -> None:
        """Tell a job what a pass did to its answer, columns of the canvas [L]. `settled` None: all that is no mask."""
        if job.over:
            return
        at = answer.start + len(job.progress.tokens)
        if not job.wants_canvas and at < answer.stop and int(tokens[at]) == self._mask:
            job.passes += 1  # nothing new is settled
            return
        final = tokens if settled is None else tokens.masked_fill(~settled, self._mask)

        def count() -> None:
            self.metrics.answer(time.monotonic() - job.arrived, len(job.progress.tokens))

        job.tell(tokens[answer].tolist(), final[answer].tolist(), sure[answer].tolist(), count)

    def _drop_batch(self) -> list[Job]:
        """Forget the running batch; the jobs that were in it."""
        jobs = list(self._rows.values())
        self._batch.close()
        self._batch, self._rows = RunningBatch(self.text.model), {}
        return jobs

    def _drop_group(self) -> list[Job]:
        """Forget the group; the jobs that were in it."""
        jobs, self._group = self._group, []
        if self._group_steps is not None:
            self._group_steps.close()  # the rest is nobody's
        self._group_steps = None
        return jobs

    def _request(self, jobs: list[Job], device: str | None = None) -> Request:
        """One request of the sampler for jobs that differ in nothing but prompts, seeds, lengths and steps.

        device: of its canvas; None: the model's.
        """
        model, mask = self.text.model, self.text.model.config.mask_token_id
        most = {name: max(getattr(job.params, name) for job in jobs) for name in ("gen_length", "steps")}
        rows = [job.prompt for job in jobs], [[mask] * job.params.gen_length for job in jobs]
        keys = torch.cat([noise.row_keys(job.seed, [job.index]) for job in jobs])
        request = make_request(model, rows, jobs[0].params.model_copy(update=most), keys, self.text.ends, device=device)
        if len(jobs) == 1:
            return request
        schedule = each_with_its_steps(request.layout.masked_per_block(), [job.params.steps for job in jobs])
        return replace(request, unmask_plan=schedule)


@contextmanager
def failing(drop: Callable[[], list[Job]]) -> Iterator[None]:
    """An error in this context goes to the jobs that `drop` returns: one batch must not end the server."""
    try:
        yield
    except Exception as error:
        jobs = [job for job in drop() if not job.over]
        if not isinstance(error, InputError):
            log.exception("a batch of %d failed", len(jobs))
        said = str(error) if isinstance(error, InputError) else f"internal error: {type(error).__name__}"
        for job in jobs:
            job.fail(said)


def each_with_its_steps(masked: Tensor, steps: list[int]) -> UnmaskPlan:
    """The schedule of rows with these masks per block [B, J], each with its own number of steps."""
    plans = [UnmaskPlan.of(row[None], most) for row, most in zip(masked, steps, strict=True)]
    longest = max(plan.counts.shape[-1] for plan in plans)
    counts = [torch.nn.functional.pad(plan.counts, (0, longest - plan.counts.shape[-1])) for plan in plans]
    return UnmaskPlan(torch.cat(counts), torch.cat([plan.shares for plan in plans]))
