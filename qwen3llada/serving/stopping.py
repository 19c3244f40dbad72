"""How the server stops: it finishes the running answers, and tells everyone else that it is stopping."""

import asyncio
import socket
import time
from math import ceil
from typing import Any

from qwen3llada.serving.scheduler import Scheduler

LOOK_SECONDS = 0.05  # between looks whether all is answered


def stopping_server(config: Any, scheduler: Scheduler, stop_seconds: int) -> Any:
    """uvicorn's server, which listens until the running answers are finished: new requests get 503, as does /health.

    uvicorn alone closes its listener first, and cancels what is not answered in time.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            end = time.monotonic() + stop_seconds
            scheduler.refuse()
            while scheduler.wanted and time.monotonic() < end and not self.force_exit:
                await asyncio.sleep(LOOK_SECONDS)
            scheduler.give_up()
            self.config.timeout_graceful_shutdown = max(1, ceil(end - time.monotonic()))  # for replies on their way
            await super().shutdown(sockets)

    return Server(config)
