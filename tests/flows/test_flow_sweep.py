"""Sweeps with Prefect's own server and threads."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)  # on a busy machine the server takes minutes
def test_sweeps():
    """In a process of their own: once Prefect has run in one, processes that are forked from it end with status 1."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=0", "tests/flows/sweeps.py"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
