"""Monitor of a run: draws curves, stops on numbers that are not finite, writes the summary."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from qwen3llada.errors import InputError
from qwen3llada.objective.attention_kernels import FLASH_ATTENTION_4
from qwen3llada.objective.loss_by_level import BUCKETS, by_noise_level
from qwen3llada.training.checkpoints.fingerprint import knobs
from qwen3llada.training.run import Evaluation, Run
from qwen3llada.training.start.memory_estimate import GIB
from qwen3llada.training.stopping import StopRequest
from qwen3llada.training.watch.curves import Curves, Speed, progress_bar, write_summary
from qwen3llada.training.watch.flops import peak_flops
from qwen3llada.training.watch.peak_memory import PeakMemory
from qwen3llada.training.watch.settings import settings_hash
from qwen3llada.training.watch.step_stats import StepResult, StepValues
from qwen3llada.training.watch.trackers import Trackers


class NonFiniteError(InputError):
    """The loss or gradient is not finite. The one-line message names the step, its samples and the last checkpoint."""


@dataclass
class Window:
    """Sums over the steps since the last point of the curves. Saved in checkpoints."""

    steps: int = 0
    loss: float = 0.0
    cross_entropy: list[float] = field(default_factory=lambda: [0.0] * BUCKETS)
    corrupted: list[float] = field(default_factory=lambda: [0.0] * BUCKETS)
    figures: dict[str, float] = field(default_factory=dict)  # of the loss and of the data

    def add(self, values: StepValues, figures: Mapping[str, float]) -> None:
        self.steps += 1
        self.loss += values.loss
        self.cross_entropy = [a + b for a, b in zip(self.cross_entropy, values.cross_entropy, strict=True)]
        self.corrupted = [a + b for a, b in zip(self.corrupted, values.corrupted, strict=True)]
        self.figures |= {name: self.figures.get(name, 0.0) + value for name, value in figures.items()}


class Monitor:
    """Reads each step's numbers one step late, so that the device always has queued work."""

    def __init__(self, run: Run, stop: StopRequest):
        params = run.params
        self.run, self.stop, self.main = run, stop, run.accelerator.is_main_process
        self.curves = Curves(params.reports, run.points) if self.main else None
        flat = knobs(params) | {"seed": run.data.settings.seed, "total_steps": run.total_steps}
        self.trackers = Trackers(run.accelerator, params.reports.name, flat, run.points) if self.main else None
        before = run.state.telemetry
        self.bar = progress_bar(run.total_steps, run.state.global_step, name=params.reports.name, shown=self.main)
        self.speed = Speed(before.get("speed"))
        self.window = Window(**before.get("window", {}))
        self.peak_memory = PeakMemory(run.device, run.graphs)
        self.summary: dict[str, Any] = before.get("figures", {})  # the newest losses
        self._peak_before = before.get("peak_memory", 0)
        self._peak = peak_flops(run.device, params.peak_tflops)
        self._pending: StepResult | None = None
        self._stop_agreed = False

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, so that the summary of a resumed run covers the whole run."""
        return {
            "window": asdict(self.window),
            "speed": self.speed.so_far(),
            "figures": self.summary,
            "peak_memory": self._peak_bytes(),
        }

    @property
    def points(self) -> list[dict[str, Any]]:
        return self.curves.points if self.curves else []

    @property
    def stop_requested(self) -> bool:
        """Whether a signal arrived. With several ranks: whether they agreed on it in the last step that was read."""
        return self._stop_agreed if self.run.accelerator.num_processes > 1 else self.stop.signal is not None

    def take(self, result: StepResult) -> None:
        """Read the previous result and hold this one back, unless a point of the curves is due."""
        self.flush()
        self._pending = result
        if result.step % self.run.params.logging_steps == 0 or result.step == self.run.total_steps:
            self._draw(result, self.flush())

    def flush(self) -> StepValues | None:
        """Wait for the held result and process it. Raises NonFiniteError."""
        if self._pending is None:
            return None
        result, self._pending = self._pending, None
        values = result.read()
        self._check(result, values)
        self._stop_agreed |= values.stop
        self.window.add(values, dict(zip(self.run.loss.figure_names, values.figures, strict=True)) | {**result.figures})
        self.speed.count(result.tokens, result.flops * self.run.accelerator.num_processes)
        self.bar.update(1)
        return values

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Process all results so far, and exclude the time of this context from the speed."""
        self.flush()
        began = time.perf_counter()
        yield
        self.speed.pause(began)

    def evaluated(self, loss: float, by_level: dict[str, float]) -> bool:
        """`measured`, for the held-out loss of the current step, whole and by noise level."""
        levels = {f"eval/by_noise_level/{name}": value for name, value in by_level.items()}
        return self.measured(Evaluation("eval_loss", loss, {"eval/loss": loss, **levels}))

    def measured(self, found: Evaluation) -> bool:
        """Draw a measurement of the current step. Returns whether it is the run's best. Raises NonFiniteError."""
        state, name, value = self.run.state, found.name, found.value
        if not isfinite(value):
            said = name.replace("eval_", "held-out ")
            raise NonFiniteError(f"{said} {value} after step {state.global_step} is not a finite number")
        sign = -1 if found.higher_is_better else 1
        improved = state.best is None or sign * value < sign * state.best[name]
        if improved:
            state.best = {"step": state.global_step, name: value}
        self.summary[name] = value
        if state.global_step == 0:
            self.summary[f"{name}_before"] = value
        if self.main:
            self._add(state.global_step, found.curves)
        return improved

    def finish(self) -> dict[str, Any]:
        """Close the curves; write outcome and measurements to separate files. Returns both together."""
        outcome, measured = self._outcome(), self._measured()
        self.bar.close()
        if self.curves and self.trackers:
            self.curves.close()
            self.trackers.close()
            write_summary(self.run.params.reports, outcome, measured)
        return outcome | measured

    def _outcome(self) -> dict[str, Any]:
        """Results that depend only on code, parameters and data: reproducible, interrupted or not."""
        run, name, best = self.run, self.run.measured, self.run.state.best or {}
        before = {f"{name}_before": self.summary[f"{name}_before"]} if f"{name}_before" in self.summary else {}
        return {
            "settings": settings_hash(run.params, seed=run.data.settings.seed),
            "steps": run.state.global_step,
            "loss": self.summary.get("loss"),
            **before,
            name: self.summary.get(name),
            f"best_{name}": best.get(name),
            "best_step": best.get("step"),
            "optimizer": run.optimizer_name,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "trained_parameters": sum(p.numel() for p in run.parameters()),
        }

    def _measured(self) -> dict[str, Any]:
        """Results that depend on machine, launch and interruptions. Rates are None if nothing was trained."""
        run, total = self.run, self.speed.total
        trained = total["tokens"] > 0 and total["seconds"] > 0
        flash = run.params.attention.implementation == FLASH_ATTENTION_4
        return {
            "tokens_per_second": round(total["tokens"] / total["seconds"], 1) if trained else None,
            "mfu": self._utilisation(total["flops"] / total["seconds"]) if trained else None,
            "estimated_memory_gib": round(run.memory.total / GIB, 2),
            "peak_memory_gib": round(self._peak_bytes() / GIB, 2),
            "processes": run.accelerator.num_processes,
            "compiled": run.compiled,
            "graphed_shapes": len(run.graphs.shapes) if run.graphs else 0,
            **({"attention_fall_backs": run.loss.fall_backs.passes} if flash else {}),
            "resumed_from": str(run.resumed_from) if run.resumed_from else None,
            "curves": self.curves.writer if self.curves else None,
        }

    def _draw(self, result: StepResult, values: StepValues | None) -> None:
        """Add one point to each curve, over the steps since the last point."""
        assert values is not None
        tokens_per_second, flops_per_second = self.speed.window()
        loss = self.window.loss / self.window.steps
        point = {
            "train/loss": loss,
            "train/learning_rate": result.lr,
            "train/grad_norm": values.grad_norm,
            "train/tokens_per_second": tokens_per_second,
            "train/peak_memory_gib": self.peak_memory.read() / GIB,
        }
        utilisation = self._utilisation(flops_per_second)
        if utilisation is not None:
            point["train/mfu"] = utilisation
        point |= {f"train/{name}": value / self.window.steps for name, value in self.window.figures.items()}
        levels = by_noise_level(self.window.cross_entropy, self.window.corrupted)
        point |= {f"train/by_noise_level/{name}": value for name, value in levels.items()}
        self.window = Window()
        self.summary["loss"] = loss
        self.bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s", refresh=False)
        self._add(result.step, point)

    def _add(self, step: int, point: dict[str, float]) -> None:
        if self.curves and self.trackers:  # on rank 0
            self.curves.add(step, point)
            self.trackers.add(step, point)

    def _check(self, result: StepResult, values: StepValues) -> None:
        scaler = self.run.accelerator.scaler
        # fp16 skips an update whose gradient overflows and lowers the scale. At a scale below 1 this does not help.
        overflow_expected = scaler is not None and scaler.get_scale() >= 1
        if isfinite(values.loss) and (isfinite(values.grad_norm) or overflow_expected):
            return
        samples = self.run.data.samples_of(result.epoch, result.epoch_batch)
        last = self.run.last_checkpoint
        raise NonFiniteError(
            f"step {result.step}: loss {values.loss} with gradient norm {values.grad_norm} is not finite; dataset"
            f" indices of the step's samples: {samples}; last good checkpoint: {last or 'none'}"
        )

    def _peak_bytes(self) -> int:
        """Peak memory, including processes before the run was resumed."""
        return max(self._peak_before, self.peak_memory.read())

    def _utilisation(self, flops_per_second: float) -> float | None:
        """Share of all devices' peak; None if the peak is unknown."""
        if self._peak is None:
            return None
        return round(flops_per_second / (self._peak * self.run.accelerator.num_processes), 4)
