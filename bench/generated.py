"""Generated text, conversations and a tokenizer for benchmarks."""

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

MB = 10**6
VOCABULARY = 16_000  # of the tokenizer
WORDS = 60_000
RARE = 0.02  # share of words that occur once: names, numbers, typos
SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "ion", "ö", "ст")]
ENDS = (".", ".", ".", ",", ";", "!", "?", ".\n", "\n\n", ' "', ": ", " (", ")", ".\n\n    ")


class Writer:
    """Generates words with Zipf-distributed frequencies, and sentences from them."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self._words = [self._word() for _ in range(WORDS)]
        self._shares = list(itertools.accumulate(1 / (rank + 2) for rank in range(WORDS)))

    def _word(self) -> str:
        return "".join(self.rng.choices(SYLLABLES, k=self.rng.choice((1, 2, 2, 3, 3, 4))))

    def text(self, words: int) -> str:
        """`words` words, 17 between punctuation marks; one in fifty is a new word or a number."""
        drawn = self.rng.choices(self._words, cum_weights=self._shares, k=words)
        for place in range(self.rng.randrange(int(1 / RARE)), words, int(1 / RARE)):
            rare = f"{self._word()}{self._word()}{self._word()}"
            drawn[place] = rare if place % 3 else str(self.rng.randrange(10**5))
        parts = [" ".join(drawn[i : i + 17]).capitalize() for i in range(0, words, 17)]
        return " ".join(part + self.rng.choice(ENDS) for part in parts)


def write_text(path: Path, megabytes: int) -> None:
    """Write documents of 20 to 2,000 words as JSON lines, `megabytes` of text in total."""
    writer, left = Writer(0), megabytes * MB
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        while left > 0:
            text = writer.text(int(20 * 100 ** writer.rng.random()))
            left -= len(text.encode())
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def read_texts(path: Path) -> Iterator[str]:
    """The texts written by `write_text`."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def write_tokenizer(folder: Path, text: Path) -> None:
    """Write a tokenizer of Qwen3's kind, with its added tokens, trained on the first documents of `text`."""
    from transformers import PreTrainedTokenizerFast

    from qwen3llada.corpus.builtin.model import write_tokenizer as train

    train(folder, itertools.islice(read_texts(text), 2000), bpe_tokens=VOCABULARY)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"max_position_embeddings": 32768}')


def write_conversations(path: Path, records: int, seed: int) -> None:
    """Write conversations of one to three pairs. One in 200 has a blank answer, one in 500 no answer."""
    writer = Writer(seed)
    rng = writer.rng
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(records):
            turns = []
            for _ in range(rng.choice((1, 1, 2, 3))):
                turns.append({"from": "human", "value": f"{number} {writer.text(rng.randrange(5, 40))}"})
                turns.append({"from": "gpt", "value": writer.text(rng.randrange(5, 120))})
            if number % 200 == 7:
                turns[1]["value"] = " "
            kept = turns[: 1 if number % 500 == 11 else None]
            file.write(json.dumps({"conversations": kept}, ensure_ascii=False) + "\n")
