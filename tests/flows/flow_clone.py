"""A clone of this repository in which flows run."""

import hashlib
import subprocess

import psutil
from flow_project import Workspace
from flow_service import LONG_PATIENCE

from flows.environment import ROOT


class Clone(Workspace):
    """A clone of this repository in which nothing has been run."""

    def __init__(self, folder) -> None:
        super().__init__(folder / "clone")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.root)], check=True)
        self.git("config", "user.name", "test")
        self.git("config", "user.email", "test@example.org")
        self.home = {"PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(self.root)}

    def trainer(self) -> psutil.Process | None:
        pids = self.running("stages.pretrain")
        return psutil.Process(pids[0]) if pids else None

    def saved(self) -> set[str]:
        return {path.name for path in (self.root / "out/pretrain/checkpoints").glob("*/step-*")}

    def wait_for_training(self, seen=frozenset()) -> psutil.Process:
        """Wait until the trainer runs and has saved a new checkpoint."""
        self.wait_until(lambda: bool(self.saved() - seen) and self.trainer() is not None, LONG_PATIENCE)
        trainer = self.trainer()
        assert trainer is not None, "training ended before anything could be done to it"
        return trainer

    def digests(self) -> dict[str, str]:
        """Digests of the models, and of the optimiser's state at the end of both trainings."""
        files = [self.root / f"out/qwen3llada-{name}/model.safetensors" for name in ("base", "sft")]
        for phase in ("pretrain", "sft"):
            checkpoints = (self.root / "out" / phase / "checkpoints").glob("*/step-*")
            files.append(max(checkpoints, key=lambda path: int(path.name[5:])) / "optimizer.pt")
        return {str(f.relative_to(self.root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
