"""Folders with a DVC project, and the processes in them."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from flows.environment import child_environment


class Workspace:
    """A folder with a DVC project, and the processes in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def processes(self) -> list[psutil.Process]:
        """All living processes that work in this folder or below it, except this one."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(self.root):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [process for process in found if process.pid != os.getpid()]

    def running(self, *words: str) -> list[int]:
        """Ids of the `processes` that have one of the words as an argument."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if set(words) & set(process.cmdline()):
                    found.append(process.pid)
        return found

    def wait_until(self, condition: Callable[[], object], seconds: float = 600) -> None:
        """Poll every 20 ms, but at most a tenth of the time, because listing all processes costs time."""
        end = time.monotonic() + seconds
        while True:
            asked = time.monotonic()
            if condition():
                return
            answered = time.monotonic()
            assert answered < end, "waited in vain"
            time.sleep(max(0.02, 9 * (answered - asked)))

    def dvc(self, *args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "dvc", *args], cwd=self.root, env=child_environment(), capture_output=True, text=True
        )

    def git(self, *args: str) -> str:
        return subprocess.run(["git", *args], cwd=self.root, check=True, capture_output=True, text=True).stdout

    def start(self, *args: str, variables: dict[str, str] | None = None, **kwargs) -> subprocess.Popen:
        """A process of `python ARGS` in the project."""
        settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | kwargs
        env = child_environment() | (variables or {})
        return subprocess.Popen([sys.executable, *args], cwd=self.root, env=env, **settings)


class Project(Workspace):
    """The project of `tests/flows/project`, in a folder of its own."""

    def set(self, **train) -> None:
        yaml = YAML()
        tree = yaml.load(self.root / "params.yaml")
        tree["train"].update(train)
        yaml.dump(tree, self.root / "params.yaml")

    def undisturbed_model(self, steps: int, text: str = "some text\n", rate: float = 0.1) -> str:
        """The result of training without interruptions."""
        model = text
        for step in range(1, steps + 1):
            model = hashlib.sha256(f"{model} {step} {rate}".encode()).hexdigest()
        return model + "\n"

    def model(self) -> str:
        return (self.root / "model.txt").read_text()

    def lives(self) -> list[int]:
        """The ids of all training processes so far."""
        file = self.root / "work" / "lives"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def has_checkpoint(self) -> bool:
        return (self.root / "work" / "checkpoint.json").exists()

    def saved_step(self) -> int:
        """The step of the checkpoint; 0 if there is none."""
        file = self.root / "work" / "checkpoint.json"
        return json.loads(file.read_text())["step"] if file.exists() else 0
