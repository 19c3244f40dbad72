"""Facts about records that the rules of validation judge, found block by block."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada.corpus.conversations.prompts import is_encodable
from qwen3llada.corpus.conversations.records import GPT, HUMAN, is_taught, map_record, visible
from qwen3llada.corpus.conversations.unused_fields import find_lost
from qwen3llada.corpus.files.rows import Block, Row
from qwen3llada.corpus.text.same_text import exact_hash, text_hash

#: Facts of a record. None if a fact does not apply, such as roles of a record without turns.
FACTS = (
    "unreadable",  # why it cannot be read
    "malformed",  # what is wrong with its structure
    "not_unicode",  # texts that are not valid Unicode
    "roles",  # of its turns, as one text
    "taught_pairs",  # human→gpt pairs whose answer is trained on
    "unused_fields",  # fields whose text is in no text of the record, comma-separated
    "dropped_media",  # places in its texts that stand for images, videos or audio
    "blank_texts",
    "control_characters",
    "control_tokens",
    "excess_tokens",  # tokens of all its texts together beyond the limit
    "leaked_from",  # number of a held-out record with the same prompt
    "identity",  # hash of the record
    "prompt",  # hash of everything before its last answer to train on
    "answer",  # hash of its last answer to train on
)
# Category Cc except tab and line breaks, the byte order mark, and the two code points that are never characters.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
# A byte-level tokenizer makes at most one token per byte, and NFC at most three bytes of one (UAX 15).
_TOKENS_A_BYTE = 3


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """Facts of a block's records, a list for each of `FACTS`, and statistics over all of them."""

    file: Path
    first: int
    records: int
    facts: dict[str, list[Any]]
    openings: list[int | None]  # per record, the hash of its first pair's prompt
    prompt_characters: list[int]
    answer_characters: list[int]
    turns: list[int]
    bytes: np.ndarray  # [256] count of each byte


class FactFinder:
    """Finds the facts of blocks of records.

    `backend`: a tokenizer of the tokenizers library; its settings are changed. `control`: its control tokens.
    `max_tokens`: limit for all texts of a record together. `heldout`: hash of a prompt -> held-out record it opens.
    """

    def __init__(self, backend: Any, control: set[str], max_tokens: int, heldout: Mapping[int, int]):
        self.backend = backend
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.max_tokens, self.heldout = max_tokens, heldout
        special = sorted(control, key=len, reverse=True)
        # A common prefix of all control tokens rules out most texts faster than the pattern.
        columns = zip(*special, strict=False)
        self.prefix = "".join(c[0] for c in itertools.takewhile(lambda c: len(set(c)) == 1, columns))
        self.special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def __call__(self, block: Block) -> BlockFacts:
        found = BlockFacts(
            block.file, block.first, len(block), {name: [] for name in FACTS}, [], [], [], [], np.zeros(256, np.int64)
        )
        for row in block.rows():
            facts = self._facts(row, found)
            for name, values in found.facts.items():
                values.append(facts.get(name))
        return found

    def _facts(self, row: Row, found: BlockFacts) -> dict[str, Any]:
        """The facts of one record. Facts that its damage makes meaningless are missing."""
        found.openings.append(None)
        if row.error is not None:
            return {"unreadable": row.error}
        if not isinstance(row.value, dict):
            return {"malformed": f"a record is an object, this is {_kind(row.value)}"}
        record = map_record(row.value)
        if (damage := describe_damage(record, list(row.value))) is not None:
            return {"malformed": visible(damage)}
        turns = [(turn["from"], turn["value"]) for turn in record["conversations"]]
        taught = [turn["from"] == GPT and is_taught(turn) for turn in record["conversations"]]
        lost = find_lost(row.value, record)
        texts = [value for _, value in turns] + ([record["system"]] if record["system"] else [])
        facts: dict[str, Any] = {
            "roles": " ".join(role if role in (HUMAN, GPT) else _word(role) for role, _ in turns),
            "taught_pairs": sum(
                before == HUMAN and answers for (before, _), answers in zip(turns, taught[1:], strict=False)
            ),
            "unused_fields": ", ".join(lost.fields) or None,
            "dropped_media": lost.media,
            "blank_texts": sum(not text.strip() for text in texts),
            "control_characters": sum(len(_CONTROL.findall(text)) for text in texts),
            "control_tokens": sum(len(self.special.findall(text)) for text in texts if self.prefix in text),
        }
        broken = sum(not is_encodable(text) for text in texts)
        if broken:
            return facts | {"not_unicode": f"{broken} of {len(texts)} texts hold a lone surrogate"}
        self._count(turns, taught, texts, found)
        asked = [before for before, after in itertools.pairwise(turns) if (before[0], after[0]) == (HUMAN, GPT)]
        prompts = [text_hash(text) for _, text in asked]
        found.openings[-1] = next(iter(prompts), None)
        facts["leaked_from"] = next((self.heldout[key] for key in prompts if key in self.heldout), None)
        return facts | self._hashes(record["system"], turns, taught) | {"excess_tokens": self._excess(texts)}

    def _excess(self, texts: list[str]) -> int:
        size = sum(len(text.encode()) for text in texts)
        if size * _TOKENS_A_BYTE <= self.max_tokens:  # most records: no need to tokenize
            return 0
        tokens = sum(len(encoding) for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False))
        return max(0, tokens - self.max_tokens)

    @staticmethod
    def _hashes(system: str | None, turns: list[tuple[str, str]], taught: list[bool]) -> dict[str, int]:
        last = max((i for i, answers in enumerate(taught) if answers), default=None)
        parts = [_part("", system or ""), *(_part(role, text) for role, text in turns)]
        # Records that differ in which answers are trained on are not equal.
        untaught = [str(i) for i, (role, _) in enumerate(turns) if role == GPT and not taught[i]]
        hashes = {"identity": exact_hash("".join([*parts, *untaught]))}
        if last is not None:
            hashes |= {"prompt": exact_hash("".join(parts[: last + 1])), "answer": exact_hash(turns[last][1])}
        return hashes

    @staticmethod
    def _count(turns: list[tuple[str, str]], taught: list[bool], texts: list[str], found: BlockFacts) -> None:
        found.turns.append(len(turns))
        found.prompt_characters.extend(len(text) for role, text in turns if role == HUMAN)
        found.answer_characters.extend(len(text) for (_, text), answers in zip(turns, taught, strict=True) if answers)
        data = np.frombuffer("".join(texts).encode(), np.uint8)
        np.add(found.bytes, np.bincount(data, minlength=256), out=found.bytes)


def find_facts(finder: FactFinder, block: Block) -> BlockFacts:
    """The facts of a block, as a function for worker processes."""
    return finder(block)


def _part(role: str, text: str) -> str:
    """A turn as part of a longer text. The lengths mark its end, so that no two conversations give the same text."""
    return f"{len(role)} {len(text)} {role}{text}"


def _word(role: str) -> str:
    """A role as one printable word."""
    return visible("_".join(role.split()) or "_")


def describe_damage(record: dict[str, Any], columns: list[str]) -> str | None:
    """What is wrong with the structure of a mapped record (a list of turns, each with role and text); None if nothing.

    `columns`: columns of the record before mapping.
    """
    turns, system = record["conversations"], record["system"]
    if turns is None:
        return f"no conversation in it; its columns are {', '.join(columns) or 'none'}"
    if not isinstance(turns, list):
        return f"its conversation is {_kind(turns)}, not a list of turns"
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            return f"turn {number} is {_kind(turn)}, not an object"
        for key in ("from", "value"):
            if key not in turn:
                return f"turn {number} has no {key}; it has {', '.join(map(str, turn)) or 'nothing'}"
            if not isinstance(turn[key], str):
                return f"{key} of turn {number} is {_kind(turn[key])}, not text"
        if not isinstance(mark := turn.get("train", True), bool):
            return f"weight, train or loss of turn {number} is {str(mark)[:40]!r}, not true or false (1 or 0)"
    if system is not None and not isinstance(system, str):
        return f"system is {_kind(system)}, not text"
    return None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
