"""Short git and dvc commands, and their output."""

import os
import subprocess
from pathlib import Path

from flows.environment import child_environment


def output_of(folder: Path, *command: str) -> str:
    """Standard output of a command in `folder`, with every byte: file names may be invalid UTF-8 or end in LF.

    Raises: RuntimeError with the command's standard error.
    """
    done = subprocess.run(command, cwd=folder, env=child_environment(), capture_output=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.decode("utf-8", "replace").split()) or f"exit status {done.returncode}"
        raise RuntimeError(f"{' '.join(command[:4])}: {said}")
    return os.fsdecode(done.stdout)
