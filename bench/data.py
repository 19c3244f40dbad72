"""Tokenizing and packing compared with the bare tokenizer and with the usual recipe: time and memory.

    python -m bench.data [--megabytes 50] [--rounds 3] [--large 1000] [--processes 2] [--text FILE]

Every candidate runs in a fresh process, and they take turns. Times exclude imports and include disk reads and writes,
with two exceptions: "bare" encodes texts in memory and discards the result, and "recipe" starts from texts in Arrow.
Peaks are PSS over all processes, so shared memory counts once.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.generated import MB, read_texts, write_text, write_tokenizer
from bench.processes import Clock, measure

LENGTH = 2048  # tokens per sequence
TEXT = Path("text") / "a.jsonl"
clock = Clock()


def bare(folder: Path, processes: int) -> int:
    """`encode_batch` of the tokenizers library on lists of texts, with `processes` threads."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    texts = list(read_texts(folder / TEXT))
    clock.start()
    tokens = 0
    for start in range(0, len(texts), 1000):
        tokens += sum(map(len, backend.encode_batch(texts[start : start + 1000], add_special_tokens=False)))
    return tokens


def ours(folder: Path, processes: int) -> int:
    """`tokenize_text`, from JSON lines to packed sequences on disk."""
    from qwen3llada.corpus.fetch.sources import TextData
    from qwen3llada.corpus.tokens.tokenize import tokenize_text
    from qwen3llada.corpus.tokens.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "model")
    params = TextData(name="text", heldout_fraction=0.1, num_proc=processes)
    clock.start()
    return tokenize_text(folder / TEXT.parent, folder / "ours", tokenizer, params, max_length=LENGTH)["tokens"]


def recipe(folder: Path, processes: int) -> int:
    """`datasets.map` to tokenize, and again to group by `sum(lists, [])`, as many training scripts do."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    datasets.disable_progress_bars()

    def tokenize(batch: dict[str, Any]) -> Any:
        return tokenizer(batch["text"], verbose=False)

    def group(batch: dict[str, Any]) -> dict[str, Any]:
        joined: dict[str, list[int]] = {name: sum(lists, []) for name, lists in batch.items()}  # noqa: RUF017 - this is the recipe
        whole = len(joined["input_ids"]) // LENGTH * LENGTH
        cut = {name: [all[i : i + LENGTH] for i in range(0, whole, LENGTH)] for name, all in joined.items()}
        return cut | {"labels": cut["input_ids"].copy()}

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        files = str(folder / TEXT)
        data = datasets.load_dataset("json", data_files=files, split="train", cache_dir=cache)
        clock.start()
        data = data.map(tokenize, batched=True, num_proc=processes, remove_columns=data.column_names)
        data = data.map(group, batched=True, num_proc=processes)
        return len(data) * LENGTH


PARTS: dict[str, Callable[[Path, int], int]] = {"bare": bare, "ours": ours, "recipe": recipe}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50, help="of text, for the comparison; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each candidate")
    parser.add_argument(
        "--large", type=int, default=0, help="megabytes of text for the peak of memory; 0 leaves it out"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--text", type=Path, help="JSON lines with a text each, to be compared on instead")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        count = PARTS[arguments.part](arguments.folder, arguments.processes)
        print(json.dumps(clock.read() | {"count": count}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.text is None:
            write_text(folder / TEXT, arguments.megabytes or 5)
        else:
            (folder / TEXT).parent.mkdir()
            shutil.copyfile(arguments.text, folder / TEXT)
        write_tokenizer(folder / "model", folder / TEXT)
        if arguments.megabytes:
            compare(folder, arguments)
        if arguments.large:
            write_text(folder / TEXT, arguments.large)
            report("ours", arguments.large, [measure("bench.data", "ours", folder, arguments.processes)])


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    """Run the three candidates in turns."""
    results: dict[str, list[dict[str, float]]] = {part: [] for part in PARTS}
    for _ in range(arguments.rounds):
        for part in PARTS:
            results[part].append(measure("bench.data", part, folder, arguments.processes))
    megabytes = round((folder / TEXT).stat().st_size / MB)
    print(f"tokenizing and packing {megabytes} MB of text, {arguments.processes} processes or threads")
    rates = {part: report(part, megabytes, results[part]) for part in PARTS}
    for name, of in (("in time", 0), ("in processor time", 1)):
        bare_rate, our_rate, recipe_rate = (rates[part][of] for part in PARTS)
        print(f"{name}: ours / bare {our_rate / bare_rate:.2f}, ours / recipe {our_rate / recipe_rate:.2f}")


def report(part: str, megabytes: int, results: list[dict[str, float]]) -> tuple[float, float]:
    """Print the median times and largest peak of a candidate. Returns tokens per second, wall and processor time."""
    seconds, processor = (statistics.median(result[name] for result in results) for name in ("seconds", "processor"))
    count, peak = results[0]["count"], max(result["peak"] for result in results) / MB
    times = f"{seconds:8.2f} s, {processor:8.2f} s of processors"
    print(
        f"  {part:8} {megabytes:5} MB {times}, {count / seconds / 1e6:6.2f} M tokens/s, peak {peak:6.0f} MB", flush=True
    )
    return count / seconds, count / processor


if __name__ == "__main__":
    main()
