"""The whole training loop on one and on several GPUs: speed, and equality of the loss.

python -m bench.parallel FOLDER --prepare                       random Qwen3-0.6B and data, once
python -m bench.parallel FOLDER --name one                      one GPU
python -m bench.parallel FOLDER --name reference --accumulation 2   one GPU, the samples of two in a step
accelerate launch --config_file launch/ddp.yaml -m bench.parallel FOLDER --name ddp
accelerate launch --config_file launch/fsdp2.yaml -m bench.parallel FOLDER --name fsdp2
python -m bench.parallel FOLDER --compare

Long sequences: --rows 8 --length 4096 in all commands, also --prepare. Accumulation: --accumulation 8 for --prepare and
for "one", which is then also the reference, and 4 for ddp and fsdp2. --steps must be the same in all commands. The
second half of the steps is timed, because GPUs slow down by 2 to 3 % within half a minute as they warm up.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from bench.random_run import DEVICE, GIB, QWEN3_0_6B, TINY, write_data, write_model
from qwen3llada.training.loop import training_steps
from qwen3llada.training.params import PretrainParams
from qwen3llada.training.start.start import start
from qwen3llada.training.stopping import StopRequest
from qwen3llada.training.watch.monitor import Monitor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--name")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=240)
    args = parser.parse_args()
    if args.steps < 2:
        parser.error(f"--steps {args.steps} must be 2 or more: the second half is timed")
    if args.prepare:
        config = QWEN3_0_6B if DEVICE.type == "cuda" else TINY
        write_model(args.folder, config)
        write_data(args.folder, config, args.steps * 2 * args.rows * args.accumulation, args.length)
    elif args.compare:
        compare(args.folder)
    else:
        train(args)


def train(args: argparse.Namespace) -> None:
    """Take the steps. Rank 0 writes losses and times to FOLDER/NAME.json."""
    params = PretrainParams.model_validate(
        {
            "model": args.folder / "model",
            "data": args.folder / "data",
            "output_dir": args.folder / args.name,
            "reports": args.folder / args.name,
            "max_steps": args.steps,
            "micro_batch_size": args.rows,
            "gradient_accumulation_steps": args.accumulation,
            "max_length": args.length,
            "do_eval_loss": False,
            "resume_from": "",
            "num_workers": 2 if DEVICE.type == "cuda" else 0,
            "bf16": DEVICE.type == "cuda",
            "deterministic": False,
            "logging_steps": 10,
            "noise": {"random_length_prob": 0.0},
        }
    )
    run, stop = start(params, seed=0, template="plain"), StopRequest()
    monitor, losses, began, ended = Monitor(run, stop), [], 0.0, 0.0
    half = args.steps // 2
    for result in training_steps(run, stop):
        monitor.take(result)
        losses.append(result)
        if result.step in (half, args.steps):  # the last one before the loader's workers end
            monitor.flush()
            began, ended = ended, time.perf_counter()
    seconds = (ended - began) / (args.steps - half)
    values = [result.read().loss for result in losses]
    tokens = losses[-1].tokens
    peak = monitor.peak_memory.read() / GIB
    if run.accelerator.is_main_process:
        report = {"seconds": seconds, "tokens": tokens, "peak_gib": peak, "losses": values}
        (args.folder / f"{args.name}.json").write_text(json.dumps(report))
        print(f"{args.name}: {tokens / seconds:,.0f} tokens/s, {peak:.1f} GiB in process 0", flush=True)
    run.accelerator.end_training()


def compare(folder: Path) -> None:
    """Print the speed relative to one GPU, and the largest relative difference of a step's loss to the reference."""
    runs = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    one = runs["one"]
    reference = runs.get("reference", one)
    for name, run in runs.items():
        speed = run["tokens"] / run["seconds"]
        ratio = speed / (one["tokens"] / one["seconds"])
        right = torch.tensor(reference["losses"])
        difference = (torch.tensor(run["losses"]) - right).abs() / right
        same = "other samples in a step" if run["tokens"] != reference["tokens"] else f"{difference.max():.1e}"
        print(
            f"{name:10} {speed:9,.0f} tokens/s  {ratio:.2f} times one GPU  {run['peak_gib']:5.1f} GiB"
            f"  loss {run['losses'][0]:.5f} … {run['losses'][-1]:.5f}, largest relative difference: {same}"
        )


if __name__ == "__main__":
    main()
