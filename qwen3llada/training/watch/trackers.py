"""The curves in TensorBoard, Weights & Biases and MLflow, beside DVCLive, through Accelerate's trackers."""

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

PROJECT = "qwen3llada"  # of W&B; the experiment of MLflow, a folder of TensorBoard
FOLDER = "trackers"  # in output_dir, which DVC does not track

# Name of a tracker, which is that of its package -> environment variables for it, by the folder of the run. The user's
# own values win. With these, files stay in output_dir/trackers and nothing is sent anywhere. Of Accelerate's other
# trackers DVCLive is always on, and the rest need an account or a server.
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
    """What `Accelerator(...)` must be told, {} without trackers.

    Raises InputError for a tracker whose package is not installed, of which Accelerate would only leave it out.
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
    """Sends points to the trackers that `accelerator` was made with, none by default.

    To be used by the main process alone, which is the only one for which Accelerate begins a run.
    """

    def __init__(self, accelerator: "Accelerator", name: str, config: Mapping[str, Any], points: Iterable[dict] = ()):
        """Begin a run, named after `name` and the time, with `config` as its hyperparameters.

        Args:
            config: flat; what is no number, text or truth value is stored as text.
            points: of the run before it was resumed. A resumed run is a new one for the trackers, with all points: no
                step is missing or there twice, whatever a killed run had sent after its last checkpoint.
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
        """One point of each curve in `values`."""
        if self.accelerator.trackers:
            self.accelerator.log(dict(values), step=step)

    def close(self) -> None:
        # Not `end_training`, which would also end the communication between processes.
        for tracker in self.accelerator.trackers:
            tracker.finish()
