"""Time and memory of the stage `validate` on generated conversations.

    python -m bench.validation [--records 100000] [--processes 2]

The whole stage is timed, from the start of Python (including imports) to the validated data and reports on disk.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from bench.generated import MB, write_conversations, write_text, write_tokenizer
from bench.processes import Clock, measure

clock = Clock()


def validation(folder: Path, processes: int) -> int:
    """Run the stage with its default rules, in quarantine mode."""
    clock.start()
    from qwen3llada.corpus.validation.gate import validate
    from qwen3llada.corpus.validation.rules import ValidateParams

    params = ValidateParams(on_invalid="quarantine")
    places = (folder / "chats", folder / "validated", folder / "reports")
    return validate(*places, model_folder=folder / "model", params=params, num_proc=processes)["train"]["records"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000, help="conversations to train on, 1,000 are held out")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--part", choices=["validation"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        count = validation(arguments.folder, arguments.processes)
        print(json.dumps(clock.read() | {"count": count}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "text.jsonl", 5)
        write_tokenizer(folder / "model", folder / "text.jsonl")
        write_conversations(folder / "chats" / "train" / "a.jsonl", arguments.records, seed=1)
        write_conversations(folder / "chats" / "heldout" / "a.jsonl", 1000, seed=2)
        size = (folder / "chats" / "train" / "a.jsonl").stat().st_size / MB
        start = time.perf_counter()
        result = measure("bench.validation", "validation", folder, arguments.processes)
        used = f"{time.perf_counter() - start:.1f} s, {result['processor']:.1f} s of processors"
        print(f"validating {arguments.records:,} records ({size:.0f} MB): {used}, peak {result['peak'] / MB:.0f} MB")


if __name__ == "__main__":
    main()
