"""Tokenization of text and conversations to disk. The bytes do not depend on the number of processes."""

import csv
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3llada.artifacts import new_file, new_folder, write_json
from qwen3llada.corpus.conversations.encode import encode_records, write_conversation_samples
from qwen3llada.corpus.fetch.shard_list import write_stream
from qwen3llada.corpus.fetch.sources import ConversationData, TextData
from qwen3llada.corpus.files.reading import SPLITS, data_files
from qwen3llada.corpus.text.column import text_column
from qwen3llada.corpus.text.encode import document_hashes, encode_blocks, text_notes, write_text_sequences
from qwen3llada.corpus.tokens.histogram import Histogram
from qwen3llada.corpus.tokens.mapped_tokens import ArrowTokens, load_tokens
from qwen3llada.corpus.tokens.packing import MANIFEST, new_sequences
from qwen3llada.corpus.tokens.tokenizer import identity, load_tokenizer, template_identity
from qwen3llada.errors import InputError
from qwen3llada.modeling.positions import check_positions

__all__ = [
    "ArrowTokens",
    "load_tokens",
    "text_notes",
    "tokenize_conversations",
    "tokenize_corpora",
    "tokenize_text",
]

log = logging.getLogger(__name__)


def tokenize_corpora(
    raw_text: Path,
    validated: Path,
    out: Path,
    reports: Path,
    *,
    tokenizer_folder: Path,
    text: TextData,
    conversations: ConversationData,
    pretrain_length: int,
    sft_length: int,
) -> dict[str, Any]:
    """Tokenize both splits of both corpora into `out`/{pretrain,sft}/{train,heldout}.

    Reports: tokenize.json (counts of each), lengths.csv (histograms), and throughput.json, the only one that depends on
    the machine. Returns: the counts. Raises: InputError in one line if there is nothing to tokenize, or if a length
    exceeds the positions of the model whose config.json is beside the tokenizer, if there is one.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    if (tokenizer_folder / "config.json").is_file():
        check_positions(tokenizer_folder, {"pretrain.max_length": pretrain_length, "sft.max_length": sft_length})
    manifests: dict[str, dict[str, Any]] = {"pretrain": {}, "sft": {}}
    speeds: dict[str, dict[str, Any]] = {"pretrain": {}, "sft": {}}
    with new_folder(out) as folder:
        heldout = document_hashes(raw_text / "heldout", text)
        for split in SPLITS:
            tokenize = write_stream if text.streaming and split == "train" else tokenize_text
            with _timed("pretrain", split, manifests, speeds):
                manifests["pretrain"][split] = tokenize(
                    raw_text / split,
                    folder / "pretrain" / split,
                    tokenizer,
                    text,
                    max_length=pretrain_length,
                    heldout=heldout if split == "train" else frozenset(),
                )
            with _timed("sft", split, manifests, speeds):
                manifests["sft"][split] = tokenize_conversations(
                    validated / split, folder / "sft" / split, tokenizer, conversations, max_length=sft_length
                )
    counts = {
        kind: {split: _counts(manifest) for split, manifest in splits.items()} for kind, splits in manifests.items()
    }
    write_json(reports / "tokenize.json", counts)
    write_json(reports / "throughput.json", speeds)
    _write_histograms(reports / "lengths.csv", manifests)
    return counts


def _counts(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest for the report: its numbers, and the column that was read."""
    return {key: value for key, value in manifest.items() if isinstance(value, int) or key == "text_field"}


def tokenize_text(
    raw: Path, out: Path, tokenizer: Any, params: TextData, *, max_length: int, heldout: frozenset[int] = frozenset()
) -> dict[str, Any]:
    """Tokenize the text files in `raw` into sequences of `max_length` tokens in the folder `out`. Returns its manifest.

    Every document ends with EOS, if the tokenizer has one. Documents that are blank, or whose hash is in `heldout`
    (`document_hashes`), are skipped and counted. `text_field` in the manifest is the column that was read.
    Raises: InputError if there is no text, no text column, or too little text for one sequence.
    """
    column = text_column(data_files(raw), params.text_field)
    with new_folder(out) as folder:
        with new_sequences(folder) as writer:
            parts = encode_blocks(raw, tokenizer, params, heldout)
            counts, lengths = write_text_sequences(parts, writer, params, max_length)
            digest = writer.close()
        if not counts["documents"]:
            blank, held_out = counts["blank_documents"], counts["heldout_documents"]
            which = f"{held_out} of them held out and {blank} blank" if held_out else "all of them blank"
            raise InputError(f"{raw}: no text in it; {blank + held_out} documents, {which}")
        if not writer.sequences:
            tokens = counts["tokens"]
            raise InputError(
                f"{raw}: {tokens} tokens do not fill one sequence of {max_length=}; remainder=pad keeps them"
            )
        counts |= {"sequences": writer.sequences, "sequence_tokens": writer.tokens, "max_length": max_length}
        made_with = identity(tokenizer) | {"template": None}
        return _write_manifest(folder, {"text_field": column} | counts | {"sha256": digest} | made_with, lengths)


def tokenize_conversations(
    validated: Path, out: Path, tokenizer: Any, params: ConversationData, *, max_length: int
) -> dict[str, Any]:
    """Tokenize the conversations in `validated` into samples with prompt lengths in the folder `out`. Returns its
    manifest.

    Raises: InputError if there is no record, a record has no human→gpt pair, or every sample is too long.
    """
    with new_folder(out) as folder:
        with new_sequences(folder, prompts=True) as writer:
            parts = encode_records(validated, tokenizer, params, max_length)
            counts, lengths = write_conversation_samples(parts, writer)
            digest = writer.close()
        if not counts["records"]:
            raise InputError(f"{validated}: no records in it")
        if not writer.sequences:
            raise InputError(f"{validated}: all {counts['exchanges']} samples are longer than {max_length=}")
        counts |= {"samples": writer.sequences, "sample_tokens": writer.tokens, "max_length": max_length}
        made_with = identity(tokenizer) | template_identity(tokenizer, params.template)
        return _write_manifest(folder, counts | {"sha256": digest} | made_with, lengths)


def _write_manifest(folder: Path, manifest: dict[str, Any], lengths: dict[str, Histogram]) -> dict[str, Any]:
    manifest["histograms"] = {name: histogram.rows() for name, histogram in lengths.items()}
    write_json(folder / MANIFEST, manifest)
    return manifest


@contextmanager
def _timed(kind: str, split: str, manifests: dict[str, Any], speeds: dict[str, Any]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    manifest = manifests[kind][split]
    tokens = manifest.get("tokens" if kind == "pretrain" else "sample_tokens")
    if tokens is None:  # a stream, which has not been read yet
        return
    speeds[kind][split] = {"seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds)}
    log.info("%s %s: %s tokens, %.0f a second", kind, split, f"{tokens:,}", tokens / seconds)


def _write_histograms(path: Path, manifests: dict[str, dict[str, Any]]) -> None:
    """One line per bin: the series (documents, prompts or answers of a split), the bin's lower edge, the count."""
    with new_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["series", "at_least", "count"])
        for splits in manifests.values():
            for split, manifest in splits.items():
                for name, rows in manifest.get("histograms", {}).items():
                    writer.writerows([f"{split} {name}", row["at_least"], row["count"]] for row in rows)
