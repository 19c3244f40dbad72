"""The HTTP server: OpenAI's interface over one model, a page to watch it think, health and metrics."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from qwen3llada.sampling.dialogue.text_model import MASK, TextModel
from qwen3llada.sampling.params import AnswerParams
from qwen3llada.serving.gate import Gate
from qwen3llada.serving.metrics import CONTENT_TYPE
from qwen3llada.serving.params import ServeParams
from qwen3llada.serving.replies import error_body
from qwen3llada.serving.service import Refusal, Service

PAGE = Path(__file__).with_name("page.html")
# The page loads nothing, and speaks with this server alone.
NOTHING_ELSE = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
READ = ["GET", "HEAD"]
STARTED = int(time.time())


def build_app(text: TextModel, params: ServeParams, defaults: AnswerParams) -> Any:
    """The FastAPI application. `app.state.scheduler` runs while the application does."""
    from fastapi import FastAPI, Request
    from fastapi.responses import Response

    service = Service(text, params, defaults)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        service.scheduler.start()
        yield
        await asyncio.to_thread(service.scheduler.stop)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.scheduler, app.state.metrics = service.scheduler, service.scheduler.metrics
    api_key = None if params.api_key is None else params.api_key.get_secret_value()
    app.add_middleware(Gate, api_key=api_key, metrics=service.scheduler.metrics)
    _add_errors(app)
    _add_pages(app, service)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await service.answer(request, "chat")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await service.answer(request, "completion")

    return app


def _add_errors(app: Any) -> None:
    """Errors in OpenAI's form."""
    from fastapi import Request
    from fastapi.responses import JSONResponse, Response

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return JSONResponse(error.body, error.status, {"Retry-After": "1"} if error.status == 429 else None)

    @app.exception_handler(Exception)  # a defect: Starlette raises it again afterwards, so the log has the traceback
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse(error_body(f"internal error: {type(error).__name__}", "server_error"), 500)

    @app.exception_handler(404)
    async def unknown(request: Request, error: Any) -> Response:
        return JSONResponse(error_body(f"{request.method} {request.url.path}: no such address"), 404)

    @app.exception_handler(405)
    async def other_method(request: Request, error: Any) -> Response:
        allowed = ", ".join(sorted(error.headers["Allow"].split(", ")))
        said = f"{request.method} {request.url.path}: the method must be {allowed.replace(', ', ' or ')}"
        return JSONResponse(error_body(said), 405, {"Allow": allowed})


def _add_pages(app: Any, service: Service) -> None:
    """The chat page, and what is asked about the server."""
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

    scheduler, name = service.scheduler, service.name

    @app.api_route("/", methods=READ)
    async def page() -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": NOTHING_ELSE})

    @app.api_route("/health", methods=READ)
    async def health() -> Response:
        body = {"status": "ok" if scheduler.running else "stopping", "model": name, "waiting": scheduler.waiting}
        return JSONResponse(body, 200 if scheduler.running else 503)

    @app.api_route("/metrics", methods=READ)
    async def metrics() -> Response:
        text = scheduler.metrics.text(waiting=scheduler.waiting, decoding=scheduler.decoding)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    @app.api_route("/v1/models", methods=READ)
    async def models() -> Response:
        entry = {"id": name, "object": "model", "created": STARTED, "owned_by": "qwen3llada"}
        own = {"mask": MASK, "max_tokens": service.text.model.config.max_position_embeddings}
        own |= {"defaults": service.defaults.model_dump(mode="json")}
        return JSONResponse({"object": "list", "data": [entry | {"qwen3llada": own}]})
