"""LMDeploy's PyTorch engine beside this project's sampler and server: one GPU, the same weights.

    python -m bench.engines speed --seconds 240        # tokens per second of both, and the ratio
    python -m bench.engines agree --seconds 200        # whether both give the same tokens, blocks of 4 and 32
    python -m bench.engines load --seconds 240         # both servers under 64 and 200 clients, and one

Needs LMDeploy 0.18, whose wheel works without TurboMind's binaries. Without --model the weights have Qwen3-0.6B's
shapes: random ones, and for `agree` ones that have learned a few sequences by heart. Every engine runs in a process of
its own with a time limit. What one of them could not do is missing from the table; the end of its output is printed,
and all of it is kept in --folder.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import engine_agreement, engine_load, engine_speed
from bench.engine_speed import OURS, THEIRS
from bench.lmdeploy_engine import ENVIRONMENT, run_to_exit

ENDING = 10  # seconds that a process gets to end the row that it is at
LEARNING = 60.0  # seconds at most, see `engine_lessons`
LEAST = 60.0  # seconds that a process gets in any case: an engine takes up to half of them to start
SHARE = 0.6  # of the time that is left, at most, for a process that others follow
TAIL = 40  # lines that are printed of a process that failed
MARK = "RESULT "


def child(command: str, args: argparse.Namespace, seconds: float, **given: Any) -> list[dict[str, Any]]:
    """The results of one part. Its process is killed after `seconds`, with all that it has started."""
    begin, found = time.perf_counter(), list[dict[str, Any]]()
    seconds = max(LEAST, seconds)
    told = {"folder": args.folder, "seconds": f"{seconds - ENDING:.0f}", "dtype": args.dtype, "steps": args.steps}
    told |= given | ({"model": args.model} if args.model else {})
    flags = [f"--{name}={value}" for name, value in told.items()]
    log = args.folder / f"{'-'.join([command, *map(str, given.values())])}.log"
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "bench.engines", command, "--child", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=ENVIRONMENT | dict(os.environ),
        start_new_session=True,
    )
    timer = threading.Timer(seconds, lambda: kill(process))
    timer.start()
    assert process.stdout is not None
    with log.open("w") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            if line.startswith(MARK):
                found.append(json.loads(line.removeprefix(MARK)))
                print(f"  {time.perf_counter() - begin:4.0f} s  {line.removeprefix(MARK).strip()[:400]}", flush=True)
    status = process.wait()
    timer.cancel()
    kill(process)
    print(f"# {log.stem}: status {status}, {time.perf_counter() - begin:.0f} s", flush=True)
    if status:
        print(*log.read_text(errors="replace").splitlines()[-TAIL:], sep="\n", flush=True)
    return found


def kill(process: "subprocess.Popen[Any]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class Folders:
    """Where the checkpoint and its export are."""

    def __init__(self, args: argparse.Namespace) -> None:
        own = "learned" if args.command == "agree" or args.learned else "random"
        self.name = own if args.model is None else "-".join(args.model.absolute().parts[-2:])
        self.model, self.exported = args.folder / self.name, args.folder / f"{self.name}-sdar"


def prepare(args: argparse.Namespace) -> None:
    """Write checkpoint and export where they are missing, in a process that leaves no GPU memory taken."""
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (Folders(args).exported / "config.json").is_file():
        child("prepare", args, 150, **({"learned": 1} if Folders(args).name == "learned" else {}))


def prepare_child(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from bench.engine_lessons import write_learned
    from bench.engine_models import export, widen, write_random

    begin, folders = time.perf_counter(), Folders(args)
    if args.model:
        widen(args.model, folders.model)
    elif args.learned:
        yield write_learned(folders.model, LEARNING)
    else:
        write_random(folders.model)
    export(folders.model, folders.exported)
    yield {"note": f"{folders.exported} written in {time.perf_counter() - begin:.0f} s"}


def speed(args: argparse.Namespace) -> None:
    end, found = time.perf_counter() + args.seconds, list[dict[str, Any]]()
    prepare(args)
    parts = engine_speed.parts()
    for i, (engine, block) in enumerate(parts):
        share = 1 if i == len(parts) - 1 else SHARE
        found += child("speed", args, (end - time.perf_counter()) * share, engine=engine, block=block or 0)
        print(engine_speed.table(found), flush=True)


def speed_child(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    folders = Folders(args)
    yield from engine_speed.measure(args.engine, args.block or None, folders.model, folders.exported, args.seconds)


def agree(args: argparse.Namespace) -> None:
    end, found = time.perf_counter() + args.seconds, list[dict[str, Any]]()
    prepare(args)
    parts = [(engine, block) for block in engine_agreement.BLOCKS for engine in (THEIRS, OURS)]
    for i, (engine, block) in enumerate(parts):
        share = 1 if i == len(parts) - 1 else SHARE
        found += child("agree", args, (end - time.perf_counter()) * share, engine=engine, block=block)
    print(engine_agreement.table(found), flush=True)


def agree_child(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    folders = Folders(args)
    file = folders.exported.with_name(f"{folders.name}-states-{args.block}.json")
    if args.engine == OURS:
        yield from engine_agreement.compare_ours(folders.model, args.block, file)
    else:
        yield from engine_agreement.record_theirs(folders.exported, args.model, args.block, file, args.dtype)


def load(args: argparse.Namespace) -> None:
    end, found = time.perf_counter() + args.seconds, list[dict[str, Any]]()
    prepare(args)
    for engine, share in ((THEIRS, SHARE), (OURS, 1)):
        found += child("load", args, (end - time.perf_counter()) * share, engine=engine)
        print(engine_load.table(found), flush=True)


def load_child(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    folders = Folders(args)
    log = args.folder / f"server-{args.engine}.log"
    yield from engine_load.measure(args.engine, folders.model, folders.exported, args.steps, args.seconds, log)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "prepare": prepare,
    "speed": speed,
    "agree": agree,
    "load": load,
}
CHILDREN: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "prepare": prepare_child,
    "speed": speed_child,
    "agree": agree_child,
    "load": load_child,
}


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=[*COMMANDS])
    parser.add_argument("--model", type=Path, help="a checkpoint of this project, of any vocabulary; default: random")
    parser.add_argument("--folder", type=Path, default=Path("out/engines"), help="of all that is written")
    parser.add_argument("--seconds", type=float, default=240, help="of the whole command; what has no time is left out")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"], help="agree: of LMDeploy")
    parser.add_argument("--steps", type=int, default=32, help="load: denoising steps for a block of 32")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--learned", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--engine", choices=[OURS, THEIRS], help=argparse.SUPPRESS)
    parser.add_argument("--block", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main() -> None:
    args = parse()
    if not args.child:
        COMMANDS[args.command](args)
        return

    def part() -> None:
        for result in CHILDREN[args.command](args):
            print("\n" + MARK + json.dumps(result), flush=True)  # a progress bar may have left its line open

    run_to_exit(part)


if __name__ == "__main__":
    main()
