"""Tokenizing and packing against the bare tokenizer and the usual recipe; validation; memory.

    python -m bench.data [--megabytes 50] [--rounds 3] [--large 1000] [--records 100000] [--processes 2]

Every candidate runs in a fresh process, and they take turns. Times are without imports; what is read from and written
to disk is included, except for "bare", which encodes texts that are in memory and throws the result away, and for
"recipe", whose texts are in Arrow already. Peaks are of all processes together (PSS: what they share counts once).
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MB = 10**6
LENGTH = 2048  # tokens of a sequence
VOCABULARY = 16_000  # of the tokenizer that is trained for the occasion
WORDS = 60_000
#: How Qwen3's tokenizer splits a text before it merges bytes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def words(rng: random.Random) -> tuple[list[str], list[float]]:
    """Made-up words and their frequencies, which fall as Zipf found."""
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "ion", "ö", "ст")]
    found = ["".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3, 3, 4)))) for _ in range(WORDS)]
    return found, [1 / (rank + 2) for rank in range(WORDS)]


def write_text(path: Path, megabytes: int) -> None:
    """Documents of 20 to 2,000 words as JSON lines, `megabytes` of text in all."""
    rng = random.Random(0)
    vocabulary, weights = words(rng)
    left = megabytes * MB
    with open(path, "w", encoding="utf-8") as file:
        while left > 0:
            drawn = rng.choices(vocabulary, weights, k=int(20 * 100 ** rng.random()))
            lines = [" ".join(drawn[i : i + 17]).capitalize() for i in range(0, len(drawn), 17)]
            text = ".\n".join(lines) + "."
            left -= len(text.encode())
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def write_tokenizer(folder: Path, text: Path) -> None:
    """A byte-level BPE tokenizer with Qwen3's split, trained on the first megabytes of `text`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), to_bytes])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    with open(text, encoding="utf-8") as file:
        backend.train_from_iterator(
            (json.loads(line)["text"] for line, _ in zip(file, range(2000), strict=False)), trainer
        )
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(folder)
    (folder / "config.json").write_text('{"max_position_embeddings": 32768}')


def write_conversations(path: Path, records: int, seed: int) -> None:
    """Conversations of one to three pairs; one in two hundred has a blank answer, one in five hundred no answer."""
    rng = random.Random(seed)
    vocabulary, weights = words(rng)
    path.parent.mkdir(parents=True)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(records):
            turns = []
            for _ in range(rng.choice((1, 1, 2, 3))):
                turns += [
                    {
                        "from": "human",
                        "value": f"{number} {' '.join(rng.choices(vocabulary, weights, k=rng.randrange(5, 40)))}?",
                    },
                    {"from": "gpt", "value": " ".join(rng.choices(vocabulary, weights, k=rng.randrange(5, 120)))},
                ]
            if number % 200 == 7:
                turns[1]["value"] = " "
            file.write(
                json.dumps({"conversations": turns[: 1 if number % 500 == 11 else None]}, ensure_ascii=False) + "\n"
            )


def bare(folder: Path, processes: int) -> int:
    """`encode_batch` of the tokenizers library on lists of texts, in as many threads."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    with open(folder / "text" / "a.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    clock.start()
    tokens = 0
    for start in range(0, len(texts), 1000):
        tokens += sum(map(len, backend.encode_batch(texts[start : start + 1000], add_special_tokens=False)))
    return tokens


def ours(folder: Path, processes: int) -> int:
    """`tokenize_text`, from JSON lines to packed sequences on disk."""
    from qwen3llada.corpus.sources import TextData
    from qwen3llada.corpus.tokenization import tokenize_text
    from qwen3llada.corpus.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "model")
    params = TextData(name="text", heldout_fraction=0.1, num_proc=processes)
    clock.start()
    return tokenize_text(folder / "text", folder / "ours", tokenizer, params, max_length=LENGTH)["tokens"]


def recipe(folder: Path, processes: int) -> int:
    """`datasets.map` to tokenize, and again to group with `sum(lists, [])`, as many training scripts do."""
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
        files = str(folder / "text" / "a.jsonl")
        data = datasets.load_dataset("json", data_files=files, split="train", cache_dir=cache)
        clock.start()
        data = data.map(tokenize, batched=True, num_proc=processes, remove_columns=["text"])
        data = data.map(group, batched=True, num_proc=processes)
        return len(data) * LENGTH


def validation(folder: Path, processes: int) -> int:
    """The whole stage: facts, Great Expectations, reports, validated data."""
    from qwen3llada.corpus.gate import validate
    from qwen3llada.corpus.rules import ValidateParams
    from qwen3llada.corpus.validation import open_context

    open_context(folder / "docs")  # imports
    params = ValidateParams(on_invalid="quarantine")
    clock.start()
    places = (folder / "chats", folder / "validated", folder / "reports")
    return validate(*places, model_folder=folder / "model", params=params, num_proc=processes)["train"]["records"]


PARTS: dict[str, Callable[[Path, int], int]] = {"bare": bare, "ours": ours, "recipe": recipe, "validation": validation}


class Clock:
    """Seconds since `start`, and the processor time that this process and those it has waited for took since."""

    begin = used = 0.0

    def start(self) -> None:
        """From here on."""
        self.begin, self.used = time.perf_counter(), self._processor()

    def read(self) -> dict[str, float]:
        """Both, in seconds."""
        return {"seconds": time.perf_counter() - self.begin, "processor": self._processor() - self.used}

    @staticmethod
    def _processor() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system


clock = Clock()


def measure(part: str, folder: Path, processes: int) -> dict[str, float]:
    """Seconds, count (tokens or records) and peak bytes of one part in a process of its own."""
    import psutil

    environment = os.environ | {
        "RAYON_NUM_THREADS": str(processes),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
    command = [
        sys.executable,
        "-m",
        "bench.data",
        "--part",
        part,
        "--folder",
        str(folder),
        "--processes",
        str(processes),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True) as child:
        peak, done = [0], threading.Event()
        watch = threading.Thread(target=_watch, args=(psutil.Process(child.pid), peak, done))
        watch.start()
        output, errors = child.communicate()
        done.set()
        watch.join()
    if child.returncode:
        raise SystemExit(f"{part}: {errors[-2000:]}")
    return json.loads(output.splitlines()[-1]) | {"peak": peak[0]}


def _watch(process: Any, peak: list[int], done: threading.Event) -> None:
    import psutil

    while not done.wait(0.2):
        total = 0
        for one in [process, *_children(process)]:
            with contextlib.suppress(psutil.Error, OSError):  # it has just ended
                total += one.memory_full_info().pss
        peak[0] = max(peak[0], total)


def _children(process: Any) -> list[Any]:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50, help="of text, for the comparison; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each candidate")
    parser.add_argument(
        "--large", type=int, default=0, help="megabytes of text for the peak of memory; 0 leaves it out"
    )
    parser.add_argument("--records", type=int, default=100_000, help="conversations to validate; 0 leaves it out")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        count = PARTS[arguments.part](arguments.folder, arguments.processes)
        print(json.dumps(clock.read() | {"count": count}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text").mkdir()
        write_text(folder / "text" / "a.jsonl", arguments.megabytes or 5)
        write_tokenizer(folder / "model", folder / "text" / "a.jsonl")
        if arguments.megabytes:
            compare(folder, arguments)
        if arguments.large:
            write_text(folder / "text" / "a.jsonl", arguments.large)
            report("ours", arguments.large, [measure("ours", folder, arguments.processes)])
        if arguments.records:
            write_conversations(folder / "chats" / "train" / "a.jsonl", arguments.records, seed=1)
            write_conversations(folder / "chats" / "heldout" / "a.jsonl", 1000, seed=2)
            validate_records(folder, arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    """The three ways to tokenize, in turns."""
    parts = ("bare", "ours", "recipe")
    results: dict[str, list[dict[str, float]]] = {part: [] for part in parts}
    for _ in range(arguments.rounds):
        for part in parts:
            results[part].append(measure(part, folder, arguments.processes))
    print(f"tokenizing and packing {arguments.megabytes} MB of text, {arguments.processes} processes or threads")
    rates = {part: report(part, arguments.megabytes, results[part]) for part in parts}
    for name, of in (("in time", 0), ("in processor time", 1)):
        bare_rate, our_rate, recipe_rate = (rates[part][of] for part in parts)
        print(f"{name}: ours / bare {our_rate / bare_rate:.2f}, ours / recipe {our_rate / recipe_rate:.2f}")


def report(part: str, megabytes: int, results: list[dict[str, float]]) -> tuple[float, float]:
    """Print the median times and largest peak of a part; its tokens a second, and a second of processor time."""
    seconds, processor = (statistics.median(result[name] for result in results) for name in ("seconds", "processor"))
    count, peak = results[0]["count"], max(result["peak"] for result in results) / MB
    times = f"{seconds:8.2f} s, {processor:8.2f} s of processors"
    print(
        f"  {part:8} {megabytes:5} MB {times}, {count / seconds / 1e6:6.2f} M tokens/s, peak {peak:6.0f} MB", flush=True
    )
    return count / seconds, count / processor


def validate_records(folder: Path, arguments: argparse.Namespace) -> None:
    """The validation stage over generated conversations."""
    result = measure("validation", folder, arguments.processes)
    seconds, peak = result["seconds"], result["peak"] / MB
    used = f"{seconds:.1f} s, {result['processor']:.1f} s of processors"
    print(f"validating {arguments.records:,} records: {used}, peak {peak:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
