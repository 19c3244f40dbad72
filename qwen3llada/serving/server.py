"""Running the server until it is told to stop."""

from qwen3llada.errors import InputError
from qwen3llada.sampling.params import SampleParams
from qwen3llada.serving.params import ServeParams

# Of a connection without a request. A client whose request meets the closing of its connection loses it: with
# uvicorn's 5 seconds, some in a thousand did under load.
KEEP_ALIVE_SECONDS = 75


def serve(params: ServeParams, defaults: SampleParams) -> None:
    """Answer requests for the checkpoint `params.model` until Ctrl-C or SIGTERM; running answers are finished then.

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
        host, port = listener.getsockname()[:2]
        print(f"{params.model} at http://{host}:{port} (Ctrl-C stops)", flush=True)
        config = uvicorn.Config(
            app,
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            ws="none",
        )
        stopping_server(config, app.state.scheduler, params.stop_seconds).run(sockets=[listener])
