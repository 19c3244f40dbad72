"""Conversations as samples of token ids, with the length of each prompt."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada.corpus.conversations.prompts import encode_answers, encode_prompts, fit
from qwen3llada.corpus.conversations.records import exchanges, map_record
from qwen3llada.corpus.fetch.sources import ConversationData
from qwen3llada.corpus.files.ordered_map import ordered_map
from qwen3llada.corpus.files.reading import data_files, read_blocks
from qwen3llada.corpus.files.rows import Block
from qwen3llada.corpus.tokens.histogram import Histogram
from qwen3llada.corpus.tokens.packing import SequenceWriter
from qwen3llada.errors import InputError


@dataclass(frozen=True, slots=True)
class EncodedConversations:
    """Samples of a block as concatenated token ids, and the number of exchanges by outcome."""

    tokens: np.ndarray  # [sum of lengths] int32
    lengths: np.ndarray  # [samples] int64
    prompt_lengths: np.ndarray  # [samples] int64
    records: int
    outcomes: Counter[str]


class ConversationEncoder:
    """Encodes blocks of records as samples of at most `max_length` tokens."""

    def __init__(self, tokenizer: Any, params: ConversationData, max_length: int):
        self.tokenizer, self.params, self.max_length = tokenizer, params, max_length

    def __call__(self, block: Block) -> EncodedConversations:
        """The samples of a block. Raises: InputError naming the file and a record without a human→gpt pair."""
        pairs = []
        for offset, row in enumerate(block.rows()):
            try:
                if row.error is not None:
                    raise InputError(row.error)
                record = map_record(row.value) if isinstance(row.value, dict) else {}
                pairs += exchanges(record, self.params.turns)
            except InputError as error:
                raise InputError(f"{block.file}: record {block.first + offset}: {error}") from error
        prompts = encode_prompts(self.tokenizer, self.params.template, pairs)
        answers = encode_answers(self.tokenizer, [pair.gpt for pair in pairs])
        bos = self.tokenizer.bos_token_id
        fitted = [
            fit(prompt, answer, self.max_length, self.params.overflow, bos=bos)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        kept = [(ids, prompt_length) for ids, prompt_length, outcome in fitted if outcome != "dropped"]
        lengths = np.array([len(ids) for ids, _ in kept], np.int64)
        return EncodedConversations(
            tokens=np.fromiter(chain.from_iterable(ids for ids, _ in kept), np.int32, int(lengths.sum())),
            lengths=lengths,
            prompt_lengths=np.array([prompt_length for _, prompt_length in kept], np.int64),
            records=len(block),
            outcomes=Counter(outcome for _, _, outcome in fitted),
        )


def encode_records(
    folder: Path, tokenizer: Any, params: ConversationData, max_length: int
) -> Iterator[EncodedConversations]:
    """The conversations in `folder`, in order, encoded by `params.num_proc` processes."""
    blocks = chain.from_iterable(read_blocks(path) for path in data_files(folder))
    return ordered_map(_encode, ConversationEncoder(tokenizer, params, max_length), blocks, params.num_proc)


def _encode(encoder: ConversationEncoder, block: Block) -> EncodedConversations:
    return encoder(block)


def write_conversation_samples(
    parts: Iterator[EncodedConversations], writer: SequenceWriter
) -> tuple[dict[str, int], dict[str, Histogram]]:
    """Write encoded samples. Returns counts, and the lengths of prompts and answers."""
    prompts, answers = Histogram(), Histogram()
    records, outcomes = 0, Counter[str]()
    for part in parts:
        writer.add(part.tokens, part.lengths, part.prompt_lengths)
        prompts.add(part.prompt_lengths)
        answers.add(part.lengths - part.prompt_lengths)
        records += part.records
        outcomes += part.outcomes
    counts = {"records": records, "exchanges": outcomes.total(), "dropped": outcomes["dropped"]}
    counts |= {name: outcomes[name] for name in ("prompt_truncated", "answer_truncated")}
    counts |= {"prompt_tokens": prompts.total, "answer_tokens": answers.total}
    counts |= {"longest_prompt": prompts.longest, "longest_answer": answers.longest}
    return counts, {"prompt": prompts, "answer": answers}
