"""Qwen3's four sizes on several GPUs of one host: speed, memory, checkpoints, start, and equality of the loss.

python -m bench.scale --out scale.jsonl                 all rows, the most important first, one JSON line each
python -m bench.scale --out scale.jsonl --rows 8b-block,8b-full --budget 120
python -m bench.scale --list
python -m bench.scale --out scale.jsonl --gpus 2 --rows tiny-fsdp2,tiny-ddp,tiny-one      on a CPU, to try it

Each row is a `torchrun` of its own with a time limit, so that a row that fails costs no other; it then has an `error`
instead of numbers. Weights are random, of the shapes and knobs of configs/qwen3-*.yaml. Times of steps are of the steps
after the first four. `--budget`: seconds after which no further row starts.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.scale_rows import ROWS, TINY, Row

ROOT = Path(__file__).parents[1]
MODELS = {"tiny": 1, "0.6b": 2, "1.7b": 7, "4b": 16, "8b": 33}  # GB of the weights in float32
PREPARING = 90  # seconds at most
SAVING = 100  # seconds that writing a checkpoint may take; else the row goes without one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to append a JSON line per row to")
    parser.add_argument("--rows", help="names, separated by commas; by default all but the tiny ones")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of the rows that take all; 0: those that there are")
    parser.add_argument("--budget", type=float, default=3600, help="seconds after which no further row starts")
    parser.add_argument("--folder", type=Path, help="for models and checkpoints, removed at the end")
    parser.add_argument("--no-checkpoints", action="store_true", help="save none, and resume none")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    known = {row.name: row for row in [*ROWS, *TINY]}
    names = args.rows.split(",") if args.rows else [row.name for row in ROWS]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--rows {','.join(unknown)} must be of {', '.join(known)}")
    if args.list or args.out is None:
        print("\n".join(f"{name:13} {known[name].seconds:3} s  {asdict(known[name])}" for name in names))
        return
    gpus = args.gpus or gpu_count()
    rows = [replace(known[name], gpus=known[name].gpus or gpus) for name in names]
    if args.no_checkpoints:
        rows = [replace(row, checkpoint=False) for row in rows]
    folder = args.folder or roomiest(sum(MODELS.get(size, 0) / 2 for size in {r.size for r in rows}) + 100)
    run_all(rows, gpus, folder, args.out, args.budget)


def run_all(rows: list[Row], gpus: int, folder: Path, out: Path, budget: float) -> None:
    """Prepare the models, and run the rows in order; neighbouring rows of one GPU at the same time."""
    began, saved = time.monotonic(), False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results").mkdir(exist_ok=True)
    logs = out.with_name(f"{out.stem}-logs").absolute()  # written as the rows run, so that a kill leaves them
    logs.mkdir(parents=True, exist_ok=True)
    (folder / "logs").symlink_to(logs)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sizes = sorted({row.size for row in rows if row.size in MODELS})
        job = {"prepare": sizes, "folder": str(folder), "limit": PREPARING}
        prepared = finished([started("prepare", job, gpus, folder, first_gpu=0, sharded=False)], PREPARING, folder)[0]
        report(out, prepared | {"seconds": round(time.monotonic() - began, 1), "folder": str(folder)})
        rate = prepared.get("write_gb_per_s", 0.0)
        while rows:
            together = [rows[0]]
            while together[0].gpus == 1 and len(together) < min(gpus, len(rows)) and rows[len(together)].gpus == 1:
                together.append(rows[len(together)])
            rows = rows[len(together) :]
            left = budget - (time.monotonic() - began)
            if left < 0.5 * together[0].seconds:
                for row in together:
                    report(out, {"row": row.name, "skipped": f"{left:.0f} s left of the budget"})
                continue
            saving = [r.checkpoint and not saved and affordable(r, rate, folder) for r in together]
            for result, row in zip(run_together(together, saving, folder, out), together, strict=True):
                saved |= "save_whole_s" in result and row.size != "tiny"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def affordable(row: Row, rate: float, folder: Path) -> bool:
    """Whether a checkpoint (weights and two moments in float32) fits on the disk, and is written in time."""
    size = 3 * MODELS[row.size]
    return row.size == "tiny" or (size < SAVING * rate and size * 1e9 < 0.9 * shutil.disk_usage(folder).free)


def run_together(rows: list[Row], saving: list[bool], folder: Path, out: Path) -> list[dict[str, Any]]:
    """Run rows at the same time, on GPUs of their own, and then their second parts, which resume. Reports each part."""
    limit = max(60 + 3 * row.seconds for row in rows)
    jobs = [
        {"row": asdict(row) | {"checkpoint": save}, "folder": str(folder), "limit": limit}
        for row, save in zip(rows, saving, strict=True)
    ]
    sharded = [row.strategy == "fsdp2" for row in rows]
    first = [sum(row.gpus for row in rows[:number]) for number in range(len(rows))]
    running = [
        started(row.name, job, row.gpus, folder, first_gpu=gpu, sharded=many)
        for row, job, gpu, many in zip(rows, jobs, first, sharded, strict=True)
    ]
    results = finished(running, limit, folder)
    checkpoints = [result.pop("checkpoint", None) for result in results]
    for result in results:
        report(out, result)
    for row, job, result, many, checkpoint in zip(rows, jobs, results, sharded, checkpoints, strict=True):
        if checkpoint:
            name = f"{row.name}-resumed"
            again = started(name, job | {"resume": checkpoint}, row.gpus, folder, first_gpu=0, sharded=many)
            resumed = finished([again], limit, folder)[0]
            report(out, resumed | compared(result, resumed))
        shutil.rmtree(folder / "runs" / row.name, ignore_errors=True)
    return results


def compared(whole: dict[str, Any], resumed: dict[str, Any]) -> dict[str, Any]:
    """The largest difference of a step's loss after resuming."""
    theirs, first = resumed.get("losses", []), len(whole["losses"]) - len(resumed.get("losses", []))
    pairs = list(zip(whole["losses"][first:], theirs, strict=True))
    return {"resume_loss_difference": max(abs(a - b) for a, b in pairs)} if pairs else {}


def started(name: str, job: dict, gpus: int, folder: Path, *, first_gpu: int, sharded: bool) -> tuple[str, Any, float]:
    """Start `bench.scale_row` on `gpus` GPUs. Its output goes to a log in the folder."""
    paths = [path for path in [os.environ.get("PYTHONPATH")] if path]
    environ = dict(os.environ) | {"SCALE_BEGAN": str(time.time()), "PYTHONPATH": os.pathsep.join([str(ROOT), *paths])}
    if sharded:
        environ |= fsdp2_variables()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(64)))).split(",")
    environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[first_gpu : first_gpu + gpus])
    environ.setdefault("OMP_NUM_THREADS", "4")
    environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    command = [sys.executable, "-m", "torch.distributed.run", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    command += [f"--nproc-per-node={gpus}", "-m", "bench.scale_row", json.dumps(job | {"name": name})]
    with open(folder / "logs" / f"{name}.log", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    return name, process, time.monotonic()


def finished(running: list[tuple[str, Any, float]], limit: float, folder: Path) -> list[dict[str, Any]]:
    """Wait for processes, `limit` seconds at most. What each wrote, or the end of its log as `error`."""
    results = []
    for name, process, began in running:
        try:
            process.wait(max(1.0, limit - (time.monotonic() - began)))
            reason = f"exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"took more than {limit:.0f} s"
            process.kill()  # its workers end with it (see `bench.scale_row`)
            process.wait()
        path = folder / "results" / f"{name}.json"
        result = {"row": name} | (json.loads(path.read_text()) if path.is_file() else {})
        if reason != "exit status 0":
            lines = (folder / "logs" / f"{name}.log").read_text(errors="replace").splitlines()
            telling = [line for line in lines if line.startswith("[rank")] or lines
            result |= {"error": reason, "log": telling[-15:]}
        results.append(result)
    return results


def report(out: Path, result: dict[str, Any]) -> None:
    line = json.dumps(result)
    print(line, flush=True)
    with open(out, "a") as file:
        file.write(line + "\n")


def fsdp2_variables() -> dict[str, str]:
    """What `accelerate launch --config_file launch/fsdp2.yaml` sets."""
    import yaml

    settings = yaml.safe_load((ROOT / "launch/fsdp2.yaml").read_text())["fsdp_config"]
    names = {"fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP"}
    return {"ACCELERATE_USE_FSDP": "true"} | {names.get(k, k.upper()): str(v) for k, v in settings.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def gpu_count() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def roomiest(gigabytes: float) -> Path:
    """A folder in memory if that has the room (for two thirds of which there must be free memory), else in /tmp."""
    for place in ("/dev/shm", "/tmp"):
        if Path(place).is_dir() and shutil.disk_usage(place).free > gigabytes * 1e9:
            return Path(place) / f"scale-{os.getpid()}"
    return Path(f"/tmp/scale-{os.getpid()}")


if __name__ == "__main__":
    main()
