"""What every request passes before it reaches the application: the key, and the counting."""

import asyncio
import secrets
from hashlib import sha256
from typing import Any

from qwen3llada.serving.metrics import Metrics
from qwen3llada.serving.replies import error_body
from qwen3llada.serving.scheduler import STOPPING

KNOWN = ("/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions")
REFUSAL = "wrong or missing API key: the header Authorization must be: Bearer KEY"


class Gate:
    """Asks for the key and counts requests. Plain ASGI: Starlette's own middleware hides that a client has gone."""

    def __init__(self, app: Any, api_key: str | None, metrics: Metrics) -> None:
        self.app, self.api_key, self.metrics = app, api_key, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from starlette.responses import JSONResponse

        begun = False

        async def counted(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.metrics.request(path if path in KNOWN else "other", message["status"])
            await send(message)

        path, key = scope["path"], dict(scope["headers"]).get(b"authorization")
        if path.startswith("/v1/") and not allowed(key, self.api_key):
            refusal = JSONResponse(error_body(REFUSAL, "authentication_error"), 401)
            await refusal(scope, receive, counted)
        else:
            try:
                await self.app(scope, receive, counted)
            except asyncio.CancelledError:  # the server ends before the request is complete, or its reply is read
                if not begun:
                    await JSONResponse(error_body(STOPPING, "server_error"), 503)(scope, receive, counted)


def allowed(header: bytes | None, api_key: str | None) -> bool:
    """Whether a request may be answered: there is no key, or it is the one in `Authorization: Bearer KEY`.

    The word Bearer is required, as by OpenAI and vLLM; its case does not matter (RFC 9110, section 11.1).
    """
    if api_key is None:
        return True
    scheme, _, given = (header or b"").partition(b" ")
    # compare_digest takes the same time for all texts of one length; digests hide the key's length as well.
    same = secrets.compare_digest(sha256(given.strip()).digest(), sha256(api_key.encode()).digest())
    return same and scheme.lower() == b"bearer"
