"""Clients of a server at the same time, each with a connection of its own.

httpx goes through all connections of an `AsyncClient` whenever a request begins or ends, and through all of them again
for each that is idle. One `AsyncClient` for 200 users takes more time for a request than a small model for the answer,
and the more so the faster the server is: then it is the clients that are measured.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any


async def at_once(url: str, clients: int, work: Callable[[Any], Awaitable[None]], *, timeout: float) -> float:
    """Run `work` for so many clients, each given an `httpx.AsyncClient`, until all are finished.

    timeout: seconds, of requests that state none. Returns the processor time that the clients took, in seconds. Where
    it is near the time that passed, they were the limit, and not the server.
    """
    import httpx

    async def one() -> None:
        async with httpx.AsyncClient(base_url=url, verify=certificates(), timeout=timeout, trust_env=False) as client:
            await work(client)

    begin = time.process_time()
    await asyncio.gather(*(one() for _ in range(clients)))
    return time.process_time() - begin


@cache  # reading them takes longer than some requests
def certificates() -> Any:
    """The TLS context that all clients share."""
    import httpx

    return httpx.create_ssl_context()
