"""From the body of a request to its answers: read, queued, awaited, and given back whole or piece by piece."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from qwen3llada.corpus.conversations.prompts import encode_texts
from qwen3llada.errors import InputError
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.params import AnswerParams
from qwen3llada.serving.bodies import Asked, Limits, read_chat, read_completion
from qwen3llada.serving.jobs import Job, Update
from qwen3llada.serving.params import ServeParams
from qwen3llada.serving.progress import Progress
from qwen3llada.serving.replies import DONE, Kind, Replies, error_body, event
from qwen3llada.serving.scheduler import Busy, Scheduler, Stopping

BODY_BYTES = 8 * 2**20
LONG_BYTES = 2**18  # bodies above are encoded one after the other, so that short ones find a free thread
GONE = 499  # status of what nobody reads, because the client has left; only the metrics show it
LOOK_SECONDS = 0.5  # between looks whether the client is still there
Reader = Callable[[TextModel, Any, AnswerParams, Limits], Asked]
READERS: dict[Kind, Reader] = {"chat": read_chat, "completion": read_completion}


class Refusal(Exception):
    """A request that is answered with an error: status, message, type."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.body = status, error_body(message, kind)


@dataclass(kw_only=True)
class Work:
    """The answers to one request, and where their updates arrive."""

    jobs: list[Job]
    updates: "asyncio.Queue[Update]"
    deadline: float
    look_at: float = 0.0  # when to see next whether the client is still there


class Service:
    """Answers the requests for one model."""

    def __init__(self, text: TextModel, params: ServeParams, defaults: AnswerParams) -> None:
        self.text, self.params, self.defaults = text, params, defaults
        self.name = params.served_name or str(params.model)
        self.scheduler = Scheduler(text, max_batch=params.max_batch, max_queue=params.max_queue)
        self.limits, self._long = Limits.of(text, params.max_queue), asyncio.Semaphore(1)
        # The first call sets the tokenizer's options, which must not happen in two threads at once.
        encode_texts(text.tokenizer, ["."])

    async def answer(self, request: Any, kind: Kind) -> Any:
        """The response to a request: its error is raised as a `Refusal`."""
        from fastapi.responses import JSONResponse, Response, StreamingResponse
        from starlette.requests import ClientDisconnect

        try:
            data = await body_of(request)
        except ClientDisconnect:
            return Response(status_code=GONE)
        async with self._long if len(data) > LONG_BYTES else contextlib.nullcontext():
            asked = await asyncio.to_thread(self._checked, data, kind)  # encoding a long prompt takes seconds
        work = self._submitted(asked, kind)
        replies = Replies(self.text, kind, self.name, secrets.token_hex(12), asked)
        if asked.stream:
            chunks = streamed(work, replies, self.scheduler)
            return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        finished = 0  # by their last updates: `Progress.finish` is set before the text is decoded, in another thread
        try:
            while finished < len(work.jobs):
                update = await next_update(work, request.is_disconnected)
                if update is None:
                    return Response(status_code=GONE)
                if update.error:
                    raise Refusal(update.status, update.error, "server_error")
                finished += update.finished
        finally:
            self.scheduler.cancel(work.jobs)
        return JSONResponse(replies.whole(work.jobs))

    def _checked(self, data: bytes, kind: Kind) -> Asked:
        """The request in a body. Raises Refusal."""
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"the body is not JSON: {error}") from error
        wanted = values.get("model") if isinstance(values, dict) else None
        if wanted not in (None, self.name):
            raise Refusal(404, f"model={wanted!r:.200} is not served here; {self.name} is")
        try:
            return READERS[kind](self.text, values, self.defaults, self.limits)
        except InputError as error:
            raise Refusal(400, " ".join(str(error).removeprefix("request: ").split())) from error

    def _submitted(self, asked: Asked, kind: Kind) -> Work:
        loop, updates = asyncio.get_running_loop(), asyncio.Queue[Update]()
        ends, mask = frozenset(self.text.ends), self.text.model.config.mask_token_id

        def deliver(update: Update) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, nobody waits
                loop.call_soon_threadsafe(updates.put_nowait, update)

        jobs = [
            Job(
                index=number * asked.n + choice,
                prompt=prompt,
                params=asked.params,
                seed=asked.seed,
                wants_canvas=asked.canvas,
                progress=Progress(
                    tokenizer=self.text.tokenizer,
                    mask_token_id=mask,
                    ends=ends,
                    stops=asked.stops,
                    strips=kind == "chat",
                ),
                deliver=deliver,
            )
            for number, prompt in enumerate(asked.prompts)
            for choice in range(asked.n)
        ]
        try:
            self.scheduler.submit(jobs)
        except Busy as error:
            raise Refusal(429, str(error), "rate_limit_error") from error
        except Stopping as error:
            raise Refusal(503, str(error), "server_error") from error
        return Work(jobs=jobs, updates=updates, deadline=time.monotonic() + self.params.timeout_seconds)


async def body_of(request: Any) -> bytes:
    """The body that was sent. Raises Refusal."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > BODY_BYTES:
            raise Refusal(413, f"the body must have at most {BODY_BYTES:,} bytes")
    return bytes(data)


async def next_update(work: Work, is_gone: Callable[[], Any] | None = None) -> Update | None:
    """The next update; None where the client has gone. Raises Refusal at the deadline."""
    while True:
        left = work.deadline - time.monotonic()
        if left <= 0:
            raise Refusal(504, "timeout_seconds of the server are over, the answer is given up", "timeout")
        if is_gone is not None and time.monotonic() > work.look_at:
            work.look_at = time.monotonic() + LOOK_SECONDS
            if await is_gone():
                return None
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(work.updates.get(), min(left, LOOK_SECONDS))


async def streamed(work: Work, replies: Replies, scheduler: Scheduler) -> AsyncIterator[str]:
    """The events of a request. When the client goes, the server closes this generator, which cancels the jobs."""
    sent, finished = [0] * len(work.jobs), 0
    try:
        if replies.kind == "chat":
            for job in work.jobs:
                yield replies.first_chunk(job.index)
        while finished < len(work.jobs):
            update = await next_update(work)
            if update is None:
                return
            if update.error:
                yield event(error_body(update.error, "server_error"))
                return
            job = work.jobs[update.index]
            yield replies.chunk(job, update, sent[update.index])
            sent[update.index] = update.settled
            finished += update.finished
        if replies.asked.usage:
            yield replies.last_chunk(work.jobs)
        yield DONE
    except Refusal as error:
        yield event(error.body)
    finally:
        scheduler.cancel(work.jobs)
