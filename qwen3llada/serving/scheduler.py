"""The one thread that runs the model: requests that wait and are decoded alike make a batch.

A batch is decoded to its end: the sampler cannot take in a row at a block boundary of a running batch. Rows of a batch
may have prompts and answers of other lengths, and seeds of their own: noise depends on a row's key, so that a request
gets the tokens that it would get alone.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch

from qwen3llada.errors import InputError
from qwen3llada.sampling import keyed_gumbel as noise
from qwen3llada.sampling.decoding import Step, decode
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.remasking import UnmaskPlan
from qwen3llada.sampling.request import make_request
from qwen3llada.serving.metrics import Metrics
from qwen3llada.serving.progress import Progress

log = logging.getLogger(__name__)


class Busy(InputError):
    """More requests wait than `max_queue`."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a step did to one answer. The last one has `finished`."""

    index: int  # of the answer in its request
    text: str  # new, in order
    settled: int  # tokens of the answer that no mask precedes
    step: int  # forward passes so far
    canvas: tuple[tuple[int, float], ...] | None  # (token, probability when committed or 0), where it is asked for
    finished: bool
    error: str | None = None


@dataclass(kw_only=True, eq=False)
class Job:
    """One answer that is wanted. `deliver` is called in the scheduler's thread."""

    index: int
    prompt: list[int]
    params: DecodeParams
    seed: int
    progress: Progress
    deliver: Callable[[Update], None]
    wants_canvas: bool = False
    cancelled: bool = False
    passes: int = 0
    arrived: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> str:
        """Equal for jobs that can be one batch: all parameters but the answer's length and its steps."""
        return self.params.model_dump_json(exclude={"gen_length", "steps"})


class Scheduler:
    """Takes jobs from any thread, and runs them in batches in its own."""

    def __init__(self, text: TextModel, *, max_batch: int, max_queue: int, metrics: Metrics | None = None) -> None:
        self.text, self.max_batch, self.max_queue = text, max_batch, max_queue
        self.metrics = metrics or Metrics()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.busy = False  # a batch is being decoded
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the batch that it runs; what still waits gets an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for job in self._waiting:
            self._fail(job, "the server is stopping")
        self._waiting.clear()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def submit(self, jobs: list[Job]) -> None:
        """Queue all jobs of a request, or none. Raises Busy."""
        with self._changed:
            if self._stopping:
                raise Busy("the server is stopping")
            if len(self._waiting) + len(jobs) > self.max_queue:
                raise Busy(f"{len(self._waiting)} answers wait, at most {self.max_queue} may; try again later")
            self._waiting.extend(jobs)
            self._changed.notify_all()

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Nobody waits for these any more: they are not started, and a batch of such jobs alone is given up."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
                if job in self._waiting:
                    self._waiting.remove(job)

    def _take(self) -> list[Job]:
        """The oldest job and those like it. Waits for one; empty when the scheduler stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting)
            if self._stopping:
                return []
            kind = self._waiting[0].kind
            batch = [job for job in self._waiting if job.kind == kind][: self.max_batch]
            taken = set(map(id, batch))
            self._waiting = deque(job for job in self._waiting if id(job) not in taken)
            return batch

    def _run(self) -> None:
        while batch := self._take():
            self.metrics.batch(len(batch))
            self.busy = True
            try:
                self._decode(batch)
            except Exception as error:  # one batch must not end the server
                if not isinstance(error, InputError):
                    log.exception("a batch of %d failed", len(batch))
                said = str(error) if isinstance(error, InputError) else f"internal error: {type(error).__name__}"
                for job in batch:
                    if not job.progress.finish:
                        self._fail(job, said)
            finally:
                self.busy = False

    def _decode(self, batch: list[Job]) -> None:
        model, mask = self.text.model, self.text.model.config.mask_token_id
        most = {name: max(getattr(job.params, name) for job in batch) for name in ("gen_length", "steps")}
        params = batch[0].params.model_copy(update=most)
        rows = [job.prompt for job in batch], [[mask] * job.params.gen_length for job in batch]
        keys = torch.cat([noise.row_keys(job.seed, [job.index]) for job in batch])
        request = make_request(model, rows, params, keys, self.text.ends)
        schedule = each_with_its_steps(request.layout.masked_per_block(), [job.params.steps for job in batch])
        request = replace(request, unmask_plan=schedule)
        steps = decode(model, request)
        start = max(len(job.prompt) for job in batch)
        for step in steps:
            self._tell(batch, step, start)
            if all(job.progress.finish or job.cancelled for job in batch):
                steps.close()  # the rest is nobody's
                break

    def _tell(self, batch: list[Job], step: Step, start: int) -> None:
        """Deliver what a step has settled of each answer."""
        shown = step.canvas[:, start:].tolist()
        mask = self.text.model.config.mask_token_id
        settled = step.canvas if step.settled is None else step.canvas.masked_fill(~step.settled, mask)
        tokens = settled[:, start:].tolist()  # a token that may still be revised is not sent
        sure = step.confidence[:, start:].tolist()
        log_probs = step.confidence[:, start:].clamp(min=1e-45).log().tolist()
        for row, job in enumerate(batch):
            if job.progress.finish or job.cancelled:
                continue
            length, job.passes = job.params.gen_length, step.index + 1
            new = job.progress.update(tokens[row][:length], log_probs[row][:length])
            canvas = tuple(zip(shown[row][:length], sure[row][:length], strict=True)) if job.wants_canvas else None
            finished = job.progress.finish is not None
            if finished:
                self.metrics.answer(time.monotonic() - job.arrived, len(job.progress.tokens))
            if new or canvas or finished:
                settled = len(job.progress.tokens)
                job.deliver(
                    Update(
                        index=job.index, text=new, settled=settled, step=job.passes, canvas=canvas, finished=finished
                    )
                )

    @staticmethod
    def _fail(job: Job, said: str) -> None:
        settled = len(job.progress.tokens)
        job.deliver(
            Update(index=job.index, text="", settled=settled, step=job.passes, canvas=None, finished=True, error=said)
        )


def each_with_its_steps(masked: torch.Tensor, steps: list[int]) -> UnmaskPlan:
    """The schedule of rows with these masks per block [B, J], each with its own number of steps."""
    plans = [UnmaskPlan.of(row[None], most) for row, most in zip(masked, steps, strict=True)]
    longest = max(plan.counts.shape[-1] for plan in plans)
    counts = [torch.nn.functional.pad(plan.counts, (0, longest - plan.counts.shape[-1])) for plan in plans]
    return UnmaskPlan(torch.cat(counts), torch.cat([plan.shares for plan in plans]))
