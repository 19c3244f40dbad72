"""Prefect's temporary server, which a run without a server starts for itself, made to end with its run.

Prefect stops it when the run's process exits, which a process that is killed does not do. So the server runs below
`python -m flows.temporary PORT`, which holds the reading end of a pipe: the end of it says that the owner is gone.
"""

import os
import signal
import subprocess
import sys
import threading

HOST = "127.0.0.1"


def bind_server_to_this_process() -> None:
    """Have the temporary server of this process, which starts with the first need of one, end with it.

    Nothing to do where a server is configured (`PREFECT_API_URL`).
    """
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        _bind()


def _bind() -> None:
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    class BoundServer(SubprocessASGIServer):
        """As Prefect's, but for its command, and for the pipe at its standard input."""

        def _run_uvicorn_command(self) -> subprocess.Popen:
            settings = get_current_settings().to_environment_variables(exclude_unset=True)
            ephemeral = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
            return subprocess.Popen(
                [sys.executable, "-m", "flows.temporary", str(self.port)],
                stdin=subprocess.PIPE,
                env=os.environ | ephemeral | settings,
            )

    BoundServer()  # all parts of Prefect share one instance, the first that is made


def _end_with_owner() -> None:
    """Killed, not asked: a server that is still starting, or waits for a client, would take its time to stop."""
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
