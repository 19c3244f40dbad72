"""Arithmetic questions as conversations, for post-training on rewards: python -m bench.arithmetic FOLDER

Writes sft.jsonl, rl.jsonl and heldout.jsonl: additions and subtractions of numbers of one and two digits, whose results
are not negative. No question comes twice. So none of heldout.jsonl is ever trained on, and fine-tuning on sft.jsonl
teaches no answer of rl.jsonl by heart.
"""

import random
import sys
from pathlib import Path

from qwen3llada.artifacts import write_jsonl

COUNTS = {"heldout": 200, "rl": 3000, "sft": 6000}


def questions(count: int) -> list[tuple[str, str]]:
    """Different questions with their answers, in a fixed random order."""
    rng = random.Random(0)
    found: dict[str, str] = {}
    while len(found) < count:
        top = 9 if rng.random() < 0.25 else 99
        a, b = rng.randint(0, top), rng.randint(0, top)
        if rng.random() < 0.5:
            found.setdefault(f"What is {a} + {b}?", str(a + b))
        else:
            found.setdefault(f"What is {max(a, b)} - {min(a, b)}?", str(abs(a - b)))
    pairs = list(found.items())
    random.Random(1).shuffle(pairs)
    return pairs


def write(folder: Path) -> None:
    """The three files."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = questions(sum(COUNTS.values()))
    for name, count in COUNTS.items():
        some, pairs = pairs[:count], pairs[count:]
        turns = ([{"from": "human", "value": asked}, {"from": "gpt", "value": answer}] for asked, answer in some)
        write_jsonl(folder / f"{name}.jsonl", ({"conversations": pair} for pair in turns))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
