"""The built-in world, trained in several ways with several seeds: attention policies, losses, noise schedules.

    python -m bench.world --out FILE [--variants full "blocks of 4" …] [--seeds 0 1 2] [--jobs 2]
    python -m bench.world --out FILE --table                 the table of README.md, from the results

Needs data/ and out/qwen3llada-converted (`make repro`). Each run pretrains, fine-tunes, answers the held-out questions
and measures the likelihood bounds by the stages themselves, in a folder of its own and on one thread. All cost
the same processor time. Runs that FILE holds are not repeated.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Block diffusion's pass has two copies of a text: 1,440 steps of it take as much processor time as 2,400 of these.
FULL = {"--max_steps": "2400", "--attention.policy": "full", "--attention.block_length": "16"}
#: Flags of pretraining and, but for the number of steps, of fine-tuning.
VARIANTS: dict[str, dict[str, str]] = {
    "blocks of 4": {},
    "blocks of 16": {"--attention.block_length": "16"},
    "full": FULL,
    "full, loss dllm": FULL | {"--loss_impl": "dllm"},
    "full, loss soft_ce": FULL | {"--loss_impl": "soft_ce"},
    "full, schedule cosine": FULL | {"--noise.schedule": "cosine"},
    "full, schedule power": FULL | {"--noise.schedule": "power"},
    "full, schedule sigmoid": FULL | {"--noise.schedule": "sigmoid"},
}
WRITING = threading.Lock()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results, one JSON line a run")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="print the results as a table")
    given = parser.parse_args()
    if given.table:
        print("\n".join(table(read(given.out))))
        return
    done = {(line["variant"], line["seed"]) for line in read(given.out)}
    wanted = [(v, s) for s in given.seeds for v in given.variants if (v, s) not in done]
    with ThreadPoolExecutor(given.jobs) as pool:
        for _ in pool.map(lambda job: one_run(*job, given.out), wanted):
            pass


def one_run(variant: str, seed: int, out: Path) -> None:
    """Train a variant, measure it, and add a line to the results."""
    line: dict[str, Any] = {"variant": variant, "seed": seed, "seconds": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        flags = VARIANTS[variant] | {"--seed": str(seed)}
        tuned = {name: value for name, value in flags.items() if name != "--max_steps"}
        for stage, its in {"pretrain": flags, "sft": tuned, "sample": {}, "evaluate": {}}.items():
            line["seconds"][stage] = run_stage(folder, stage, its)
        line |= {name: json.loads((folder / f"reports/{name}.json").read_text()) for name in ("sample", "evaluate")}
    with WRITING, open(out, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(variant, seed, line["sample"]["exact_match"], line["evaluate"]["pretrain"]["text_nelbo"], flush=True)


def prepare(folder: Path) -> None:
    """A project in `folder` with this one's data and converted model."""
    shutil.copytree(ROOT / "out/qwen3llada-converted", folder / "out/qwen3llada-converted")
    (folder / "data").symlink_to(ROOT / "data")
    shutil.copy(ROOT / "dvc.yaml", folder)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    # Only the bounds of the variant are wanted, no curve of quality against speed and no autoregressive line.
    for knob in ("  prompts: 30", "  autoregressive: true"):
        assert text.count(knob) == 1, knob
        text = text.replace(knob, f"{knob.partition(':')[0]}: {0 if 'prompts' in knob else 'false'}")
    (folder / "params.yaml").write_text(text, encoding="utf-8")


def run_stage(folder: Path, stage: str, flags: Mapping[str, str]) -> float:
    """Run a stage in `folder` on one thread. Returns its processor seconds; stops the program if it fails."""
    command = [sys.executable, "-m", f"stages.{stage}", *(part for flag in flags.items() for part in flag)]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(folder / f"{stage}.log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command[1:])} ended with {process.returncode}: {log.read()[-1500:]}")
    return round(used.ru_utime + used.ru_stime, 1)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Rows of Markdown: of each variant the mean over its seeds, and the values."""
    yield "| trained with | held-out texts, NELBO | held-out answers, NELBO | answered word for word | seeds |"
    yield "|---|---|---|---|---|"
    for variant in VARIANTS:
        runs = sorted((line for line in lines if line["variant"] == variant), key=lambda line: line["seed"])
        if not runs:
            continue
        texts = [line["evaluate"]["pretrain"]["text_nelbo"] for line in runs]
        answers = [line["evaluate"]["sft"]["answers_nelbo"] for line in runs]
        right = [line["sample"]["exact_match"] for line in runs]
        cells = [spread(texts), spread(answers), spread(right), ", ".join(str(line["seed"]) for line in runs)]
        yield f"| {variant} | {' | '.join(cells)} |"


def spread(values: list[float]) -> str:
    """The mean, and the single values where there are several."""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{value:.2f}' for value in values)})"


if __name__ == "__main__":
    main()
