"""The HTTP server: OpenAI's interface over one model, a page to watch it think, health and metrics."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3llada.errors import InputError
from qwen3llada.sampling.dialogue.text_model import MASK, TextModel
from qwen3llada.sampling.params import AnswerParams
from qwen3llada.serving.bodies import Asked, read_chat, read_completion
from qwen3llada.serving.gate import Gate
from qwen3llada.serving.metrics import CONTENT_TYPE
from qwen3llada.serving.params import ServeParams
from qwen3llada.serving.progress import Progress
from qwen3llada.serving.replies import DONE, Kind, Replies, error_body, event
from qwen3llada.serving.scheduler import Busy, Job, Scheduler, Update

PAGE = Path(__file__).with_name("page.html")
BODY_BYTES = 8 * 2**20
LOOK_SECONDS = 0.5  # between looks whether the client is still there
Reader = Callable[[TextModel, Any, AnswerParams], Asked]
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


def build_app(text: TextModel, params: ServeParams, defaults: AnswerParams) -> Any:
    """The FastAPI application. `app.state.scheduler` runs while the application does."""
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

    scheduler = Scheduler(text, max_batch=params.max_batch, max_queue=params.max_queue)
    name = params.served_name or str(params.model)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        scheduler.start()
        yield
        await asyncio.to_thread(scheduler.stop)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.scheduler, app.state.metrics = scheduler, scheduler.metrics

    app.add_middleware(Gate, api_key=params.api_key, metrics=scheduler.metrics)

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return JSONResponse(error.body, error.status, {"Retry-After": "1"} if error.status == 429 else None)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def unknown(request: Request, error: Any) -> Response:
        return JSONResponse(error_body(f"{request.method} {request.url.path}: no such address"), error.status_code)

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": NOTHING_ELSE})

    @app.get("/health")
    async def health() -> Response:
        body = {"status": "ok" if scheduler.running else "stopping", "model": name, "waiting": scheduler.waiting}
        return JSONResponse(body, 200 if scheduler.running else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(scheduler.metrics.text(waiting=scheduler.waiting), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> Response:
        entry = {"id": name, "object": "model", "created": STARTED, "owned_by": "qwen3llada"}
        own = {"mask": MASK, "max_tokens": text.model.config.max_position_embeddings}
        own |= {"defaults": defaults.model_dump(mode="json")}
        return JSONResponse({"object": "list", "data": [entry | {"qwen3llada": own}]})

    async def answer(request: Request, kind: Kind) -> Response:
        values = await body_of(request)
        asked = checked_body(values, kind)
        work = submitted(asked)
        replies = Replies(text, kind, name, secrets.token_hex(12), asked)
        if asked.stream:
            chunks = streamed(work, replies, scheduler)
            return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        try:
            while unfinished(work.jobs):
                update = await next_update(work, request.is_disconnected)
                if update is None:
                    return Response(status_code=499)  # nobody reads it
                if update.error:
                    raise Refusal(500, update.error, "server_error")
        finally:
            scheduler.cancel(work.jobs)
        return JSONResponse(replies.whole(work.jobs))

    def checked_body(values: Any, kind: Kind) -> Asked:
        wanted = values.get("model") if isinstance(values, dict) else None
        if wanted not in (None, name):
            raise Refusal(404, f"model={wanted!r:.200} is not served here; {name} is")
        try:
            return READERS[kind](text, values, defaults)
        except InputError as error:
            raise Refusal(400, " ".join(str(error).removeprefix("request: ").split())) from error

    def submitted(asked: Asked) -> Work:
        loop, updates = asyncio.get_running_loop(), asyncio.Queue[Update]()
        ends, mask = frozenset(text.ends), text.model.config.mask_token_id

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
                progress=Progress(tokenizer=text.tokenizer, mask_token_id=mask, ends=ends, stops=asked.stops),
                deliver=deliver,
            )
            for number, prompt in enumerate(asked.prompts)
            for choice in range(asked.n)
        ]
        try:
            scheduler.submit(jobs)
        except Busy as error:
            raise Refusal(429, str(error), "rate_limit_error") from error
        return Work(jobs=jobs, updates=updates, deadline=time.monotonic() + params.timeout_seconds)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, "chat")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, "completion")

    return app


# The page loads nothing, and speaks with this server alone.
NOTHING_ELSE = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
STARTED = int(time.time())


def unfinished(jobs: list[Job]) -> bool:
    return any(job.progress.finish is None for job in jobs)


async def body_of(request: Any) -> Any:
    """The JSON value that was sent. Raises Refusal."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > BODY_BYTES:
            raise Refusal(413, f"the body must have at most {BODY_BYTES:,} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error


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
