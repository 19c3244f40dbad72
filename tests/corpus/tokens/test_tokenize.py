"""Token files against a packing written out by hand, for every format and any number of processes."""

import gzip
import hashlib
import json
import pickle
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from qwen3llada.corpus.fetch.sources import ConversationData, TextData
from qwen3llada.corpus.tokens import packing
from qwen3llada.corpus.tokens.tokenize import load_tokens, tokenize_conversations, tokenize_corpora, tokenize_text

NAME = {"name": "corpus", "heldout_fraction": 0.1, "num_proc": 1}


def text_params(**knobs):
    return TextData(**(NAME | knobs))


def chat_params(**knobs):
    return ConversationData(**(NAME | knobs))


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.parent


def stored(folder):
    return [sample.tokens.tolist() for sample in load_tokens(folder)]


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks and record batches so small that few documents need many of them."""
    for module in ("text.documents", "files.formats", "files.rows"):
        monkeypatch.setattr(f"qwen3llada.corpus.{module}.BLOCK_BYTES", 64)
    monkeypatch.setattr(packing, "BATCH_TOKENS", 50)
    monkeypatch.setattr("qwen3llada.corpus.text.documents._CUT_WINDOW", 16)


DOCUMENTS = [
    "One fish.",
    "",
    "Zwei Fische schwimmen über den großen See.",
    "三条鱼",
    " \n",
    "x" * 150,
    "<|mask|>",
    "end\n",
]


@pytest.mark.parametrize("remainder", ["drop", "pad"])
def test_packed_sequences_are_the_stream_of_documents_cut(tmp_path, tokenizer, small_blocks, remainder):
    raw = write_jsonl(tmp_path / "raw" / "a.jsonl", [{"text": text} for text in DOCUMENTS])
    manifest = tokenize_text(raw, tmp_path / "out", tokenizer, text_params(remainder=remainder), max_length=16)
    kept = [text for text in DOCUMENTS if text.strip()]
    stream = [i for text in kept for i in [*_byte_stream(tokenizer, text), tokenizer.eos_token_id]]
    expected = [stream[i : i + 16] for i in range(0, len(stream), 16)]
    rest = len(stream) % 16
    assert rest
    assert stored(tmp_path / "out") == (expected[:-1] if remainder == "drop" else expected)
    assert manifest["documents"] == len(kept)
    assert manifest["blank_documents"] == 2
    assert manifest["tokens"] == len(stream)
    assert manifest["dropped_tokens"] == (rest if remainder == "drop" else 0)
    assert manifest["longest_document"] == 151
    assert sum(row["count"] for row in manifest["histograms"]["document"]) == len(kept)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest


def _byte_stream(tokenizer, text):
    """Ids of a text that may look like control tokens: one per byte."""
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [tokenizer.convert_tokens_to_ids(character) for character in pieces[0][0]]


@pytest.mark.parametrize("as_file", [False, True])
def test_unpacked_documents_each_start_a_sequence(tmp_path, tokenizer, small_blocks, as_file):
    """Also for a document read in pieces, as text files are: pieces do not start new documents."""
    texts = ["short", "a line\n" * 40, "z" * 31]
    raw = tmp_path / "raw"
    raw.mkdir()
    if as_file:
        for number, text in enumerate(texts):
            (raw / f"{number}.txt").write_text(text)
    else:
        write_jsonl(raw / "a.jsonl", [{"text": text} for text in texts])
    manifest = tokenize_text(raw, tmp_path / "out", tokenizer, text_params(pack_to_max_length=False), max_length=32)
    expected = []
    for text in texts:
        ids = [*_byte_stream(tokenizer, text), tokenizer.eos_token_id]
        expected += [ids[i : i + 32] for i in range(0, len(ids), 32)]
    assert stored(tmp_path / "out") == expected
    assert load_tokens(tmp_path / "out").lengths.tolist() == [len(ids) for ids in expected]
    assert manifest["dropped_tokens"] == 0
    assert manifest["longest_document"] == 281


def _write_csv(path, texts, delimiter=","):
    import csv

    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])


def _write_arrow_stream(path, texts):
    table = pa.table({"id": range(len(texts)), "text": texts})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS = {
    "a.json": lambda path, texts: path.write_text(json.dumps([{"id": 1, "text": text} for text in texts], indent=1)),
    "a.csv": _write_csv,
    "a.tsv": lambda path, texts: _write_csv(path, texts, "\t"),
    "a.parquet": lambda path, texts: pq.write_table(
        pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=3
    ),
    "a.arrow": _write_arrow_stream,
}


def _compress(path):
    data = path.read_bytes()
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(data[:100]) + gzip.compress(data[100:]))
    path.unlink()


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a.json.gz", "a.parquet.zst"])
def test_every_format_gives_the_tokens_of_json_lines(tmp_path, tokenizer, small_blocks, name):
    texts = [text for text in DOCUMENTS if text.strip()] * 3
    one, other = tmp_path / "one", tmp_path / "other"
    write_jsonl(one / "a.jsonl", [{"text": text, "id": 1} for text in texts])
    other.mkdir()
    plain = other / name.removesuffix(".gz").removesuffix(".zst")
    WRITERS[plain.name](plain, texts)
    if name.endswith(".gz"):
        _compress(plain)
    elif name.endswith(".zst"):
        plain.with_name(name).write_bytes(zstandard.compress(plain.read_bytes()))
        plain.unlink()
    assert [path.name for path in other.iterdir()] == [name]
    for raw in (one, other):
        tokenize_text(raw, raw / "out", tokenizer, text_params(remainder="pad"), max_length=16)
    assert stored(one / "out") == stored(other / "out")


@pytest.mark.parametrize(
    ("unit", "documents"),
    [
        ("file", ["One line\ntwo lines\n\n \n\nNext: ünd mehr " + "word " * 30 + "\nend\n"]),
        ("paragraph", ["One line\ntwo lines", "Next: ünd mehr " + "word " * 30 + "\nend"]),
        ("line", ["One line", "two lines", "Next: ünd mehr " + "word " * 30, "end"]),
    ],
)
@pytest.mark.parametrize("block", [7, 20, 21, 22, 64, 1 << 20])
def test_text_files_are_cut_into_documents(tmp_path, tokenizer, small_blocks, monkeypatch, unit, documents, block):
    monkeypatch.setattr("qwen3llada.corpus.text.documents.BLOCK_BYTES", block)
    (tmp_path / "raw").mkdir()
    text = "One line\ntwo lines\n\n \n\nNext: ünd mehr " + "word " * 30 + "\nend\n"
    (tmp_path / "raw" / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    params = text_params(txt_unit=unit, pack_to_max_length=False)
    tokenize_text(tmp_path / "raw", tmp_path / "out", tokenizer, params, max_length=400)
    ids = [sample[:-1] for sample in stored(tmp_path / "out")]
    assert [tokenizer.decode(sample) for sample in ids] == documents


def test_pieces_of_a_text_file_change_no_token(tmp_path, monkeypatch):
    """With merges across bytes, a piece that ended inside a word or a run of whitespace would show."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(0)
    words = ["fish", "über", "don't", "12", "\n\n", "\n", "  ", "\t", "!?", "東京", "e\u0301"]
    text = "".join(rng.choice(words) + rng.choice(["", " "]) for _ in range(4000))
    backend = Tokenizer(models.BPE())
    # Qwen's own split
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    split += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    backend.add_special_tokens(["<eos>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_bytes(text.encode())
    monkeypatch.setattr("qwen3llada.corpus.text.documents.BLOCK_BYTES", 97)
    monkeypatch.setattr("qwen3llada.corpus.text.documents._CUT_WINDOW", 16)
    tokenize_text(tmp_path / "raw", tmp_path / "out", tokenizer, text_params(remainder="pad"), max_length=64)
    stream = [i for sample in stored(tmp_path / "out") for i in sample]
    assert stream == [*backend.encode(text).ids, tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("record", "field", "column"),
    [
        ({"content": "c", "title": "t"}, "auto", "content"),
        ({"raw": "r", "document": "d"}, "auto", "raw"),
        ({"n": 1, "title": "t", "story": "an ox is on my hill"}, "auto", "story"),
        ({"text": "x", "story": "s"}, "story", "story"),
    ],
)
@pytest.mark.parametrize("columnar", [False, True])
def test_the_text_column_is_found_or_named(tmp_path, tokenizer, record, field, column, columnar):
    raw = tmp_path / "raw"
    raw.mkdir()
    if columnar:
        pq.write_table(pa.table({name: [value] for name, value in record.items()}), raw / "a.parquet")
    else:
        write_jsonl(raw / "a.jsonl", [record])
    params = text_params(text_field=field, remainder="pad")
    manifest = tokenize_text(raw, tmp_path / "out", tokenizer, params, max_length=32)
    assert tokenizer.decode(stored(tmp_path / "out")[0][:-1]) == record[column]
    assert manifest["text_field"] == column


@pytest.mark.parametrize(
    ("rows", "knobs", "message"),
    [
        ([{"n": 1}], {}, "a.jsonl: no column of text; columns: n"),
        ([{"text": "x"}], {"text_field": "txt"}, "text_field='txt' does not exist; columns: text"),
        ([{"text": "x", "n": 2}], {"text_field": "n"}, "text_field='n' does not hold text"),
        ([{"text": " "}, {"text": None}], {}, "no text in it; 2 documents, all of them blank"),
        ([{"text": "x"}], {}, "2 tokens do not fill one sequence of max_length=16; remainder=pad keeps them"),
        ([{"text": "x"}, {"tex": "y"}], {}, "a.jsonl: record 1: no column 'text'; it has tex"),
        ([{"text": "x"}, {"text": 3}], {}, "a.jsonl: record 1: text is 3, not text"),
        ([{"text": "x"}, {"text": "\ud800"}], {}, "a.jsonl: record 1 is not valid Unicode text"),
        (["plain"], {}, "record 0: 'plain' is not an object with a text in it"),
        ([], {}, "no text in it; 0 documents"),
    ],
)
def test_text_that_cannot_be_used_is_one_clear_line(tmp_path, tokenizer, rows, knobs, message):
    raw = write_jsonl(tmp_path / "raw" / "a.jsonl", rows)
    with pytest.raises(ValueError, match="(?s).*" + message) as caught:
        tokenize_text(raw, tmp_path / "out", tokenizer, text_params(**knobs), max_length=16)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_damaged_files_are_named(tmp_path, tokenizer):
    cases = {
        "a.jsonl": (b'{"text": "x"}\n{"text": "y\n', "record 1: not JSON: .*"),
        "b.jsonl": (b'{"text": "x"}\n{"text": "\xe9"}\n', "record 1: not UTF-8 text: .*"),
        "c.txt": (b"abc \xff", "not UTF-8 text: invalid start byte near byte 4"),
        "d.parquet": (b"PAR1 not really", "damaged parquet file: .*"),
        "e.arrow": (b"ARROW1 not really", "damaged arrow file: .*"),
        "f.jsonl.gz": (gzip.compress(b'{"text": "x"}\n' * 99)[:-12], "damaged jsonl file: .*"),
        "g.jsonl.zst": (zstandard.compress(b'{"text": "x"}\n' * 99)[:-5], "damaged jsonl file: .*"),
        "h.csv": (b'text,n\nx,1\n"y,2\n', "record 1: not CSV: .*"),
        "i.csv": (b"text,n\nx\n", "record 0: 1 values under a header of 2 columns"),
        "j.json": (b'[{"text": "x"}, {"text": "y"', "record 1: not JSON from here on: .*"),
    }
    for name, (data, message) in cases.items():
        raw = tmp_path / name[0]
        raw.mkdir()
        (raw / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            tokenize_text(raw, tmp_path / "out", tokenizer, text_params(remainder="pad"), max_length=16)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        tokenize_text(tmp_path / "nowhere", tmp_path / "out", tokenizer, text_params(), max_length=16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no data file in it; looked for jsonl"):
        tokenize_text(tmp_path / "empty", tmp_path / "out", tokenizer, text_params(), max_length=16)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_files_of_other_columns_are_named(tmp_path, tokenizer, kind):
    """All files must have the same text column. Files without it or with numbers in it are refused; nulls are blank."""

    def write(name, table):
        path = tmp_path / name[0] / f"{name}.{kind}"
        path.parent.mkdir(exist_ok=True)
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table)

    for name, other in (("x", {"story": ["s"]}), ("y", {"text": [3]}), ("z", {"text": pa.nulls(2)})):
        write(f"{name}0", pa.table({"text": ["some"]}))
        write(f"{name}1", pa.table(other))
    params = text_params(remainder="pad")
    with pytest.raises(ValueError, match=rf"x1\.{kind}: no column 'text'; it has story"):
        tokenize_text(tmp_path / "x", tmp_path / "out", tokenizer, params, max_length=16)
    with pytest.raises(ValueError, match=rf"y1\.{kind}: text is int64, not text"):
        tokenize_text(tmp_path / "y", tmp_path / "out", tokenizer, params, max_length=16)
    assert tokenize_text(tmp_path / "z", tmp_path / "out", tokenizer, params, max_length=16)["blank_documents"] == 2


def good(human="hi", gpt="yo", **more):
    return {"conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}], **more}


def test_conversations_become_samples_with_their_prompt_length(tmp_path, tokenizer):
    rows = [good(), good("a?", "b!", system="s"), {"question": "q", "answer": "<|mask|>"}]
    raw = write_jsonl(tmp_path / "raw" / "a.jsonl", rows)
    manifest = tokenize_conversations(raw, tmp_path / "out", tokenizer, chat_params(), max_length=64)
    samples = list(load_tokens(tmp_path / "out"))
    texts = [
        (tokenizer.decode(s.tokens[: s.prompt_length]), tokenizer.decode(s.tokens[s.prompt_length : -1]))
        for s in samples
    ]
    assert texts == [("hi\n", "yo"), ("s\na?\n", "b!"), ("q\n", "<|mask|>")]
    assert all(sample.tokens[-1] == tokenizer.eos_token_id for sample in samples)
    assert tokenizer.mask_token_id not in np.concatenate([sample.tokens for sample in samples])
    assert load_tokens(tmp_path / "out").lengths.tolist() == [6, 8, 11]
    assert (manifest["records"], manifest["samples"], manifest["answer_tokens"]) == (3, 3, 3 + 3 + 9)


@pytest.mark.parametrize(
    ("overflow", "kept", "outcome"),
    [("drop", 1, "dropped"), ("truncate_prompt", 2, "prompt_truncated"), ("truncate_answer", 2, "answer_truncated")],
)
def test_samples_that_are_too_long_are_counted(tmp_path, tokenizer, overflow, kept, outcome):
    raw = write_jsonl(tmp_path / "raw" / "a.jsonl", [good(), good("abcdefgh", "12345678")])
    manifest = tokenize_conversations(raw, tmp_path / "out", tokenizer, chat_params(overflow=overflow), max_length=16)
    samples = load_tokens(tmp_path / "out")
    assert len(samples) == kept == manifest["samples"]
    assert {name: manifest[name] for name in ("dropped", "prompt_truncated", "answer_truncated")} == {
        "dropped": 0,
        "prompt_truncated": 0,
        "answer_truncated": 0,
        outcome: 1,
    }
    last = tokenizer.decode(samples[kept - 1].tokens)
    assert (
        last
        == {
            "drop": "hi\nyo<|endoftext|>",
            "truncate_prompt": "cdefgh\n12345678<|endoftext|>",
            "truncate_answer": "abcdefgh\n1234567",
        }[overflow]
    )


def test_conversations_that_cannot_be_used_are_one_clear_line(tmp_path, tokenizer):
    raw = write_jsonl(tmp_path / "raw" / "a.jsonl", [good(), {"conversations": []}])
    with pytest.raises(ValueError, match=r"a.jsonl: record 1: a record must have at least one human→gpt pair"):
        tokenize_conversations(raw, tmp_path / "out", tokenizer, chat_params(), max_length=64)
    raw = write_jsonl(tmp_path / "long" / "a.jsonl", [good()])
    with pytest.raises(ValueError, match="all 1 samples are longer than max_length=3"):
        tokenize_conversations(raw, tmp_path / "out", tokenizer, chat_params(), max_length=3)
    raw = write_jsonl(tmp_path / "none" / "a.jsonl", [])
    with pytest.raises(ValueError, match="none: no records in it"):
        tokenize_conversations(raw, tmp_path / "out", tokenizer, chat_params(), max_length=3)
    assert not (tmp_path / "out").exists()


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path, tokenizer, small_blocks):
    rng = random.Random(1)
    documents = ["".join(rng.choices("abc dé\n", k=rng.randrange(90))) for _ in range(120)]
    text = write_jsonl(tmp_path / "text" / "a.jsonl", [{"text": document} for document in documents])
    chats = write_jsonl(tmp_path / "chats" / "a.jsonl", [good(document or "x", "y") for document in documents])
    digests = []
    for processes in (1, 2, 3):
        out = tmp_path / str(processes)
        tokenize_text(text, out / "text", tokenizer, text_params(num_proc=processes), max_length=16)
        tokenize_conversations(chats, out / "chats", tokenizer, chat_params(num_proc=processes), max_length=64)
        digests.append((digest(out / "text"), digest(out / "chats")))
    assert digests[0] == digests[1] == digests[2]


def test_an_error_in_a_worker_process_is_the_error_of_the_call(tmp_path, tokenizer, small_blocks):
    raw = write_jsonl(tmp_path / "raw" / "a.jsonl", [{"text": "word"}] * 50 + [{"text": 7}] + [{"text": "word"}] * 50)
    with pytest.raises(ValueError, match="record 50: text is 7, not text"):
        tokenize_text(raw, tmp_path / "out", tokenizer, text_params(num_proc=2), max_length=16)
    assert not (tmp_path / "out").exists()


def test_a_copy_in_another_process_reads_the_same_samples(tmp_path, tokenizer):
    raw = write_jsonl(tmp_path / "raw" / "a.jsonl", [good(str(i)) for i in range(20)])
    tokenize_conversations(raw, tmp_path / "out", tokenizer, chat_params(), max_length=64)
    samples = load_tokens(tmp_path / "out")
    copied = pickle.loads(pickle.dumps(samples))
    assert len(pickle.dumps(samples)) < 500
    assert [s.tokens.tolist() for s in copied] == [s.tokens.tolist() for s in samples]
    with pytest.raises(IndexError):
        samples[20]


def test_the_manifest_knows_the_tokens_and_the_tokenizer(tmp_path, tokenizer, make_tokenizer):
    texts = [["same text"], ["same text"], ["same tex!"]]
    manifests = []
    for number, rows in enumerate(texts):
        raw = write_jsonl(tmp_path / f"raw{number}" / "a.jsonl", [{"text": text} for text in rows])
        other = make_tokenizer(bos=True) if number == 1 else tokenizer
        manifests.append(tokenize_text(raw, tmp_path / str(number), other, text_params(remainder="pad"), max_length=16))
    assert manifests[0]["sha256"] == manifests[1]["sha256"] != manifests[2]["sha256"]
    assert manifests[0]["tokenizer_sha256"] == manifests[2]["tokenizer_sha256"] != manifests[1]["tokenizer_sha256"]


def test_both_corpora_are_tokenized_whole_or_not_at_all(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "model")
    for split in ("train", "heldout"):
        write_jsonl(tmp_path / "text" / split / "a.jsonl", [{"text": f"{split[:4]} words " * 5}] * 4)
        write_jsonl(tmp_path / "chats" / split / "a.jsonl", [good()] * 3)
    arguments = (tmp_path / "text", tmp_path / "chats", tmp_path / "out", tmp_path / "reports")
    knobs = {"tokenizer_folder": tmp_path / "model", "text": text_params(), "conversations": chat_params()}
    counts = tokenize_corpora(*arguments, **knobs, pretrain_length=16, sft_length=32)
    assert counts["pretrain"]["train"]["tokens"] == 4 * 56
    assert counts["sft"]["heldout"]["samples"] == 3
    assert len(load_tokens(tmp_path / "out/pretrain/train")) == 14
    assert json.loads((tmp_path / "reports/tokenize.json").read_text()) == counts
    lines = (tmp_path / "reports/lengths.csv").read_text().splitlines()
    assert lines[0] == "series,at_least,count"
    assert "train prompt,3,3" in lines
    before = digest(tmp_path / "out/pretrain/train")
    write_jsonl(tmp_path / "chats/heldout/a.jsonl", [{"conversations": []}])
    with pytest.raises(ValueError, match="human→gpt pair"):
        tokenize_corpora(*arguments, **knobs, pretrain_length=8, sft_length=32)
    assert digest(tmp_path / "out/pretrain/train") == before


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    from qwen3llada.corpus.tokens.tokenizer import load_tokenizer

    with pytest.raises(ValueError, match="nowhere: no such folder; it must hold a model with its tokenizer"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)
