"""One answer that is wanted, and what a pass did to it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log

from qwen3llada.sampling.params import DecodeParams
from qwen3llada.serving.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a pass did to one answer. The last one has `finished`."""

    index: int  # of the answer in its request
    text: str  # new, in order
    settled: int  # tokens of the answer that no mask precedes
    step: int  # forward passes so far
    canvas: tuple[tuple[int, float], ...] | None  # (token, probability when committed or 0), where it is asked for
    finished: bool
    error: str | None = None
    status: int = 500  # of the error in HTTP


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
    cancelled: bool = False  # nobody waits for it any more
    shares: bool | None = None  # whether it goes into the running batch; None: not decided yet
    passes: int = 0
    arrived: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> str:
        """Equal for jobs that can be one group: all parameters but the answer's length and its steps."""
        return self.params.model_dump_json(exclude={"gen_length", "steps"})

    @property
    def over(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.cancelled or self.progress.finish is not None

    def tell(
        self, tokens: Sequence[int], settled: Sequence[int], sure: Sequence[float], count: Callable[[], None]
    ) -> None:
        """Deliver what a pass did. Nothing is delivered where nothing new is settled and no canvas is asked for.

        Args, each [gen_length]: the answer's tokens; the same with a mask for each token that may still be revised; the
        probability of each when it was committed. `count` is called for a finished answer, before the client has it.
        """
        self.passes += 1
        new = self.progress.update(settled, [log(max(p, 1e-45)) for p in sure])
        canvas = tuple(zip(tokens, sure, strict=True)) if self.wants_canvas else None
        finished = self.progress.finish is not None
        if finished:
            count()
        if new or canvas or finished:
            self._deliver(new, canvas=canvas, finished=finished)

    def fail(self, said: str, status: int = 500) -> None:
        """Deliver an error as the last update."""
        settled = len(self.progress.tokens)
        self.deliver(
            Update(
                index=self.index,
                text="",
                settled=settled,
                step=self.passes,
                canvas=None,
                finished=True,
                error=said,
                status=status,
            )
        )

    def _deliver(self, text: str, *, canvas: tuple[tuple[int, float], ...] | None, finished: bool) -> None:
        settled = len(self.progress.tokens)
        self.deliver(
            Update(
                index=self.index,
                text=text,
                settled=settled,
                step=self.passes,
                canvas=canvas,
                finished=finished,
            )
        )
