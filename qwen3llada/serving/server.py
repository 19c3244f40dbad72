"""Running the server until it is told to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qwen3llada.errors import InputError
from qwen3llada.sampling.params import SampleParams
from qwen3llada.serving.params import ServeParams

# Of a connection without a request. A client whose request meets the closing of its connection loses it: with
# uvicorn's 5 seconds, some in a thousand did under load.
KEEP_ALIVE_SECONDS = 75

if TYPE_CHECKING:
    import uvicorn


def serve(params: ServeParams, defaults: SampleParams) -> None:
    """Answer requests for the checkpoint `params.model` until Ctrl-C or SIGTERM; running answers are finished then.

    Returns after that, so that the process ends with status 0: being asked to stop is how a server ends.

    Raises: InputError if there is no such model, FastAPI and uvicorn are not installed, or the port is taken.
    """
    try:
        import uvicorn

        from qwen3llada.serving.app import build_app
        from qwen3llada.serving.stopping import stopping_server
    except ImportError as error:
        raise InputError(f"the server needs {error.name}, which is not installed (pip install '.[serve]')") from error
    import socket

    from qwen3llada.sampling.dialogue.text_model import TextModel

    family = socket.AF_INET6 if ":" in params.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((params.host, params.port))  # before the model is loaded, which may take a minute
        except OSError as error:
            raise InputError(f"host={params.host} port={params.port} cannot be used: {error.strerror}") from error
        app = build_app(TextModel.load(params.model, bf16=params.bf16), params, defaults)
        config = uvicorn.Config(
            app,
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            ws="none",
        )
        server = stopping_server(config, app.state.scheduler, params.stop_seconds)
        with stopping(server):
            host, port = listener.getsockname()[:2]
            print(f"{params.model} at http://{host}:{port} (Ctrl-C stops)", flush=True)
            server.run(sockets=[listener])


@contextmanager
def stopping(server: "uvicorn.Server") -> Iterator[None]:
    """Stop the server at SIGINT or SIGTERM without ending the process, and print "stopped" once it has ended.

    uvicorn has handlers of its own while it runs: a second SIGINT does not wait for running answers. Afterwards it
    raises the signals again, for the handler that was there before.
    """
    asked: list[int] = []

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        server.should_exit = True  # for a signal that comes before uvicorn has its handlers

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        print("stopped", flush=True)
