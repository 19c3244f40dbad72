"""The environment of processes started by the flows."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def child_environment() -> dict[str, str]:
    """Environment for dvc and the stages: `python` is this Python, `flows` is importable, output is unbuffered."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PATH": path, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"}
