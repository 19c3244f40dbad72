"""Binds Prefect's temporary server, which a run without a server starts, to the life of its run.

Prefect stops the server when the run's process exits, but a killed process cannot do that. So the server runs as
`python -m flows.temporary PORT` and holds the reading end of a pipe. The pipe's end means that the owner is gone.
"""

import os
import signal
import subprocess
import sys
import threading

HOST = "127.0.0.1"


def bind_server_to_this_process() -> None:
    """Make this process's temporary server, which starts on first use, end with this process.

    Does nothing if a server is configured (`PREFECT_API_URL`).
    """
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        _bind()


def _bind() -> None:
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    class BoundServer(SubprocessASGIServer):
        """Prefect's class with another command, and a pipe as standard input."""

        def _run_uvicorn_command(self) -> subprocess.Popen:
            settings = get_current_settings().to_environment_variables(exclude_unset=True)
            ephemeral = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
            return subprocess.Popen(
                [sys.executable, "-m", "flows.temporary", str(self.port)],
                stdin=subprocess.PIPE,
                env=os.environ | ephemeral | settings,
            )

    BoundServer()  # the first instance is shared by all parts of Prefect


def _end_with_owner() -> None:
    """Kill this process when its owner ends. A graceful stop could take long while starting or serving a client."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    threading.Thread(target=_end_with_owner, daemon=True).start()
    import uvicorn

    application = "prefect.server.api.server:create_app"
    uvicorn.run(application, factory=True, host=HOST, port=int(sys.argv[1]), log_level="error", lifespan="on")


if __name__ == "__main__":
    main()
