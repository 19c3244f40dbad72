"""Curves in TensorBoard, Weights & Biases and MLflow, beside DVCLive, through Accelerate's trackers."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from qwen3llada.errors import InputError
from qwen3llada.section import Section, one_of

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "qwen3llada"  # W&B project, MLflow experiment, TensorBoard folder
FOLDER = "trackers"  # in output_dir; not tracked by DVC

# Tracker (named after its package) -> environment variables, given the run's folder. Variables that the user set win.
# The defaults keep files in output_dir/trackers and send nothing. Of Accelerate's other trackers, DVCLive is always on;
# the rest need an account or a server.
TRACKERS: dict[str, Callable[[Path], dict[str, str]]] = {
    "tensorboard": lambda folder: {},
    "wandb": lambda folder: {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_DIR": str(folder)},
    "mlflow": lambda folder: {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent.absolute() / 'mlflow.db'}",
    },
}


class TelemetryParams(Section):
    """Where else the curves go."""

    trackers: tuple[Annotated[str, one_of(TRACKERS)], ...] = Field(
        (),
        description=f"Viewers that get the curves beside DVCLive: any of {', '.join(TRACKERS)}. Each needs its package;"
        f" files go to output_dir/{FOLDER}",
    )

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"trackers={list(value)} must name each tracker once")
        return value


def accelerator_options(telemetry: TelemetryParams, output_dir: Path) -> dict[str, Any]:
    """Arguments for `Accelerator(...)`; {} without trackers.

    Raises InputError if a tracker's package is not installed. Accelerate itself would silently leave that tracker out.
    """
    if not telemetry.trackers:
        return {}
    from accelerate.utils import ProjectConfiguration

    if missing := [name for name in telemetry.trackers if importlib.util.find_spec(name) is None]:
        names = " ".join(missing)
        raise InputError(
            f"telemetry.trackers={list(telemetry.trackers)} needs packages that are not installed: pip install {names},"
            " or leave them out"
        )
    logs = ProjectConfiguration(logging_dir=str(output_dir / FOLDER / time.strftime("%Y%m%d-%H%M%S")))
    return {"log_with": list(telemetry.trackers), "project_config": logs}


class Trackers:
    """Sends points to the trackers of `accelerator`, by default none.

    Use it on rank 0 only: Accelerate starts trackers for no other rank.
    """

    def __init__(self, accelerator: "Accelerator", name: str, config: Mapping[str, Any], points: Iterable[dict] = ()):
        """Start a tracker run, named after `name` and the time, with `config` as its hyperparameters.

        Args:
            config: flat. Values other than numbers, text and booleans are stored as text.
            points: points from before the run was resumed. Trackers see a resumed run as a new one with all points, so
                no step is missing or doubled, whatever a killed run sent after its last checkpoint.
        """
        self.accelerator = accelerator
        if not accelerator.log_with:
            return
        folder = Path(accelerator.logging_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for tracker in accelerator.log_with:
            for variable, value in TRACKERS[str(tracker)](folder).items():
                os.environ.setdefault(variable, value)
        run = f"{name}-{folder.name}"
        plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in config.items()}
        named = {"wandb": {"name": run}, "mlflow": {"run_name": run, "logging_dir": folder.absolute().as_uri()}}
        accelerator.init_trackers(PROJECT, config=plain, init_kwargs=named)
        for point in points:
            self.add(point["step"], {key: value for key, value in point.items() if key != "step"})

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve in `values`."""
        if self.accelerator.trackers:
            self.accelerator.log(dict(values), step=step)

    def close(self) -> None:
        # `end_training` would also destroy the process group.
        for tracker in self.accelerator.trackers:
            tracker.finish()
