"""Post-training of the built-in world: the methods at equal processor time, on the same prompts and rewards.

    python -m bench.rl --params FILE --out FILE [--methods trace …] [--seeds 0 1 2] [--seconds 150]
    python -m bench.rl --out FILE --draw docs/images/rl.png

Needs the models and data that the parameter set names. Settings are its section `rl`, whose `max_steps` has no effect
here. The clock is the process's own processor time on one thread, without the measurements;
the held-out prompts are answered every few steps. Runs that FILE holds already are not repeated. --draw draws them.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from qwen3llada.artifacts import write_json
from qwen3llada.params import load
from qwen3llada.post_training.methods import METHODS
from qwen3llada.post_training.params import RlParams
from qwen3llada.post_training.task import Rewarded
from qwen3llada.training.loop import training_steps
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest

EVERY = 5  # steps between measurements
MANY = 100_000  # steps, more than there is time for


def run(settings: RlParams, method: str, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Train for `seconds` of processor time. Returns the held-out reward over steps and time."""
    paths = {"dst": folder / "model", "output_dir": folder / "work", "reports": folder / "reports"}
    given = settings.model_dump() | paths | {"method": method, "max_steps": MANY, "resume_from": ""}
    params = RlParams.model_validate(given)
    training = start(params, seed=seed, template="plain", task=Rewarded(params))
    assert training.judge is not None
    points: list[dict[str, float]] = []
    used, last, rewards = 0.0, time.process_time(), []

    def measure() -> None:
        nonlocal last
        assert training.judge is not None
        held_out = training.judge.measure(training).value
        rollouts = statistics.fmean(rewards[-EVERY:]) if rewards else None
        points.append({"step": training.state.global_step, "seconds": used, "reward": held_out, "rollouts": rollouts})
        print(method, seed, points[-1], flush=True)
        last = time.process_time()

    measure()
    for result in training_steps(training, StopRequest()):
        result.read()
        rewards.append(result.figures["reward"])
        used += time.process_time() - last
        last = time.process_time()
        if result.step % EVERY == 0:
            measure()
        if used >= seconds:
            break
    return {"method": method, "seed": seed, "points": points}


def table(runs: list[dict[str, Any]]) -> None:
    """The mean over the last quarter of each run's time, which is steadier than a single measurement."""
    print("| method | seeds | steps | held-out exact match before | after |")
    print("|---|---|---|---|---|")
    for method in dict.fromkeys(entry["method"] for entry in runs):
        of = [entry["points"] for entry in runs if entry["method"] == method]
        before = [points[0]["reward"] for points in of]
        after = [statistics.fmean(late(points)) for points in of]
        each = ", ".join(f"{value:.3f}" for value in after)
        steps = ", ".join(str(points[-1]["step"]) for points in of)
        first, final = statistics.fmean(before), statistics.fmean(after)
        print(f"| `{method}` | {len(of)} | {steps} | {first:.3f} | {final:.3f} ({each}) |")


def late(points: list[dict[str, float]]) -> list[float]:
    """Held-out rewards in the last quarter of the time."""
    return [point["reward"] for point in points if point["seconds"] >= 0.75 * points[-1]["seconds"]]


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Held-out reward over processor time: a line for each run, one colour for each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    colours = dict(zip(METHODS, ("tab:green", "tab:blue", "tab:orange", "tab:red"), strict=False))
    labelled = set()
    for entry in runs:
        method = entry["method"]
        x, y = ([point[name] for point in entry["points"]] for name in ("seconds", "reward"))
        axes.plot(x, y, color=colours[method], linewidth=1.4, label=None if method in labelled else method)
        labelled.add(method)
    axes.set_xlabel("processor seconds")
    axes.set_ylabel("held-out exact match")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--params", type=Path, help="parameter set; default: params.yaml as it is")
    parser.add_argument("--methods", nargs="*", default=["trace", "coupled", "random_mask", "best_of"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--draw", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = json.loads(args.out.read_text())["runs"] if args.out.is_file() else []
    if args.draw is None:
        settings = load(overlay=args.params).rl
        for seed in args.seeds:
            for method in args.methods:
                if not any((entry["method"], entry["seed"]) == (method, seed) for entry in runs):
                    with tempfile.TemporaryDirectory() as folder:
                        runs.append(run(settings, method, seed, args.seconds, Path(folder)))
                    write_json(args.out, {"seconds": args.seconds, "runs": runs})
    else:
        draw(runs, args.draw)
    table(runs)


if __name__ == "__main__":
    main()
