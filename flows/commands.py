"""Short commands of git and dvc, and what they say."""

import os
import subprocess
from pathlib import Path

from flows.environment import child_environment


def output_of(folder: Path, *command: str) -> str:
    """Standard output of a command in `folder`, every byte of it: names of files need not be UTF-8, nor end in LF.

    Raises: RuntimeError with what it said on standard error.
    """
    done = subprocess.run(command, cwd=folder, env=child_environment(), capture_output=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.decode("utf-8", "replace").split()) or f"exit status {done.returncode}"
        raise RuntimeError(f"{' '.join(command[:4])}: {said}")
    return os.fsdecode(done.stdout)
