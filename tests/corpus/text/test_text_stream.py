"""Text tokenized during training equals sequences assembled from the bytes of the files."""

import gzip
import json
from collections import Counter
from fractions import Fraction
from itertools import islice
from math import gcd

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3llada.batches.loader import make_loader
from qwen3llada.batches.settings import BatchSettings
from qwen3llada.commandline import ParamsError, validated
from qwen3llada.corpus.builtin.params import BuiltinParams
from qwen3llada.corpus.fetch.download import download
from qwen3llada.corpus.fetch.shard_list import list_shards, write_shards, write_stream
from qwen3llada.corpus.fetch.sources import ConversationData, ModelSource, TextData
from qwen3llada.corpus.files import formats
from qwen3llada.corpus.text.lanes import deal, turns
from qwen3llada.corpus.text.same_text import hashes
from qwen3llada.corpus.text.text_stream import RUN, STREAM_FILE, TextStream
from qwen3llada.diffusion.corruption import NoiseParams

LENGTH = 16
NOISE = NoiseParams.model_validate({"random_length_prob": 0.0})


@pytest.fixture
def shards(tmp_path):
    """Three shards of different sizes and formats, the second with several blocks; and their documents."""
    texts = [[f"shard {s} document {d} {'x' * (d * 7 % 40)}ö" for d in range(n)] for s, n in enumerate((20, 40, 30))]
    texts[1][3] = " "  # a blank document, which is skipped
    folder = tmp_path / "shards"
    folder.mkdir()
    lines = ["".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(part)) for part in texts]
    (folder / "0.jsonl.gz").write_bytes(gzip.compress(lines[0].encode()))
    (folder / "1.jsonl").write_text(lines[1])
    pq.write_table(pa.table({"id": range(30), "text": texts[2]}), folder / "2.parquet", row_group_size=5)
    return folder, [[text for text in part if text.strip()] for part in texts]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Makes blocks so small that files of some kilobytes have several."""
    monkeypatch.setattr("qwen3llada.corpus.files.rows.BLOCK_BYTES", 300)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 300)


def describe(folder, out, tokenizer, **settings):
    params = TextData(name=str(folder), streaming=True, heldout_name="elsewhere", **settings)
    found, _ = list_shards(params)
    write_shards(out / "raw", found)
    write_stream(out / "raw", out / "stream", tokenizer, params, max_length=LENGTH)
    return TextStream(out / "stream", tokenizer)


def expected(tokenizer, texts, samples):
    """The first samples, by way of the whole token sequences of all lanes; here each shard is a lane, large ones first.

    In a cycle each lane has turns in proportion to its bytes, 256 on average; turn k of n lies at (k + 1/2) / n of it.
    """
    backend = tokenizer.backend_tokenizer
    sizes = [sum(len(text.encode()) for text in part) for part in texts]
    order = sorted(range(len(texts)), key=lambda i: -sizes[i])
    turns = [round(256 * sizes[i] * len(texts) / sum(sizes)) for i in order]
    assert gcd(*turns) == 1
    cycle = sorted((Fraction(2 * k + 1, 2 * n), lane) for lane, n in enumerate(turns) for k in range(n))
    lanes = []
    for part in (texts[i] for i in order):
        once = [i for text in part for i in [*backend.encode(text, add_special_tokens=False).ids, 0]]
        once = [tokenizer.eos_token_id if i == 0 else i for i in once]
        endless = once * (samples * LENGTH // len(once) + 2)
        lanes.append([endless[i : i + LENGTH] for i in range(0, samples * LENGTH, LENGTH)])
    found = []
    for _, lane in cycle[: samples // RUN + 1]:
        found += lanes[lane][:RUN]
        del lanes[lane][:RUN]
    return found[:samples]


def rows(batches):
    """Position in the stream -> tokens. Checks that each sample's cursor belongs to its position."""
    return {i: row.tolist() for b in batches for i, row in zip(b.cursors, b.tokens, strict=True)}


def loader(stream, *, start_step=0, cursors=None, **settings):
    settings = BatchSettings(noise=NOISE, seed=0, mask_token_id=3, **settings)
    return make_loader(stream, settings, epoch=0, start_step=start_step, cursors=cursors)


def test_samples_are_the_documents_joined_and_cut(shards, tokenizer, tmp_path):
    """Past the end of every shard; shards are then read again from the beginning."""
    folder, texts = shards
    stream = describe(folder, tmp_path, tokenizer)
    assert tokenizer.convert_tokens_to_ids("!") == 0  # which occurs in no text
    found = [sample.tokens.tolist() for sample in stream.read(iter(range(400)), {})]
    wanted = expected(tokenizer, texts, 400)
    assert found == wanted
    assert len({tuple(row) for row in wanted}) < 400 - 50  # some are read a second time


@pytest.mark.parametrize(("processes", "workers", "micro_batch"), [(1, 0, 8), (1, 2, 8), (2, 0, 4), (2, 2, 2)])
def test_processes_and_workers_change_nothing(processes, workers, micro_batch, shards, tokenizer, tmp_path):
    folder, texts = shards
    accumulation = 8 // (processes * micro_batch)
    found = {}
    for index in range(processes):
        stream = describe(folder, tmp_path / str(index), tokenizer)
        layout = {"num_processes": processes, "process_index": index, "num_workers": workers}
        batches = loader(stream, micro_batch_size=micro_batch, gradient_accumulation_steps=accumulation, **layout)
        part = rows(islice(batches, 7 * accumulation))
        assert not part.keys() & found.keys()
        found |= part
    assert [found[i] for i in range(56)] == expected(tokenizer, texts, 56)


@pytest.mark.parametrize("steps", [1, 4, 7, 23])
@pytest.mark.parametrize("workers", [0, 2])
def test_reading_goes_on_from_the_cursors_of_all_readers(steps, workers, shards, tokenizer, tmp_path):
    """Two ranks stop in the middle; one goes on with another number of workers."""
    folder, texts = shards
    stream = describe(folder, tmp_path, tokenizer)
    cursors = {}
    for index in range(2):
        for batch in islice(loader(stream, micro_batch_size=2, num_processes=2, process_index=index), steps):
            cursors |= batch.cursors
            cursors = stream.needed(cursors)
    assert 0 < len(cursors) <= len(stream.lanes)
    stored = json.loads(json.dumps(list(cursors.items())))
    batches = loader(stream, micro_batch_size=4, start_step=steps, cursors=dict(stored), num_workers=workers)
    assert rows(islice(batches, 5)) == dict(
        enumerate(expected(tokenizer, texts, 4 * (steps + 5))[4 * steps :], 4 * steps)
    )


def test_what_was_read_is_not_read_again(shards, tokenizer, tmp_path, monkeypatch):
    """A lane of two shards that is in its second no longer needs the first."""
    folder, _ = shards
    monkeypatch.setattr("qwen3llada.corpus.text.lanes.MAX_LANES", 1)
    described = describe(folder, tmp_path, tokenizer)
    assert described.lanes == [[0, 1, 2]]
    whole = list(described.read(iter(range(300)), {}))
    place = next(i for i, sample in enumerate(whole) if sample.cursor[0] == 1 and sample.cursor[1] == 2)
    (folder / "0.jsonl.gz").unlink()
    rest = described.read(iter(range(place + 1, place + 20)), {place: whole[place].cursor})
    for sample, before in zip(rest, whole[place + 1 : place + 20], strict=True):
        assert np.array_equal(sample.tokens, before.tokens)
        assert sample.cursor == before.cursor


def test_shards_are_listed_first_and_read_once_before_training(tmp_path, tokenizer):
    """A file that is no Parquet is found when text is counted, not after some steps of training."""
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "train-0.parquet").write_bytes(b"not parquet")
    (tmp_path / "held.txt").write_text("kept apart")
    text = TextData(name=str(tmp_path / "big"), streaming=True, heldout_name=str(tmp_path / "held.txt"))
    record = download(
        tmp_path / "raw",
        model=ModelSource(),
        text=text,
        conversations=ConversationData(),
        world=BuiltinParams(people=8, documents=600, heldout_documents=40, bpe_tokens=512),
    )
    assert [*record["text"]["files"]] == ["heldout/held.txt", f"train/{STREAM_FILE}"]
    assert record["text"]["streaming"] is True
    with pytest.raises(ValueError, match=r"train-0\.parquet: damaged parquet file"):
        write_stream(tmp_path / "raw/text/train", tmp_path / "out", tokenizer, text, max_length=8)


def documents(tokenizer, stream, samples):
    """Number of occurrences of each document in the first samples, counting only whole ones; EOS ends each."""
    lanes = {}
    for position, sample in enumerate(stream.read(iter(range(samples)), {})):
        lanes.setdefault(stream._lane(position), []).extend(sample.tokens.tolist())
    texts = [text for tokens in lanes.values() for text in tokenizer.decode(tokens).split("<|endoftext|>")[:-1]]
    return Counter(texts)


@pytest.mark.parametrize("few", [1, 3])
def test_text_is_repeated_alike_however_it_is_cut_into_files(few, tokenizer, tmp_path):
    """A blank part, a part of 30 bytes, a mostly blank part of many bytes, and parts of 1 : 2 : 4 of text."""
    folder = tmp_path / "cut"
    folder.mkdir()
    names = {"blank": [" ", None] * 40, "tiny": [f"tiny {i}" for i in range(few)], "hollow": [None] * 400 + ["hollow"]}
    names |= {f"part{n}": [f"part{n} {i:03} {'x' * 50}" for i in range(15 * n)] for n in (1, 2, 4)}
    for name, texts in names.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    params = TextData(name=str(folder), streaming=True, heldout_name="elsewhere", num_proc=1)
    write_shards(tmp_path / "raw", list_shards(params)[0])
    counts = write_stream(tmp_path / "raw", tmp_path / "out", tokenizer, params, max_length=LENGTH)
    assert (counts["blank_shards"], counts["blank_documents"], counts["documents"]) == (1, 480, 105 + few + 1)
    stream = TextStream(tmp_path / "out", tokenizer)
    assert len(stream.lanes) == 3
    passes = 9
    seen = documents(tokenizer, stream, passes * sum(len(text) + 1 for t in names.values() for text in t if text) // 16)
    assert len(seen) == 105 + few + 1 + sum(name not in {t for n in names.values() for t in n} for name in seen)
    whole = [seen[text] for texts in names.values() for text in texts if text and text.strip()]
    assert passes - 2 <= min(whole) <= max(whole) <= passes + 2


def test_lanes_are_balanced_and_drawn_by_their_size():
    sizes = [5000, 0, 3, 900, 1100, 4000, 7]
    lanes = deal(sizes, least=500)
    assert sorted(shard for lane in lanes for shard in lane) == [0, 2, 3, 4, 5, 6]
    loads = [sum(sizes[i] for i in lane) for lane in lanes]
    assert min(loads) >= 500
    order = turns(loads).tolist()
    for end in range(1, len(order) + 1):  # at every point, not only after the whole cycle
        for lane, load in enumerate(loads):
            assert abs(order[:end].count(lane) - end * load / sum(loads)) < 2
    assert deal([0, 0], 1) == []
    assert turns([7, 7, 7]).tolist() == [0, 1, 2]


def test_held_out_documents_are_not_streamed(shards, tokenizer, tmp_path):
    """Documents that differ in case and whitespace are the same."""
    folder, texts = shards
    held = hashes(["  SHARD 0 document\t0  ö"])
    assert texts[0][0] == "shard 0 document 0 ö"
    params = TextData(name=str(folder), streaming=True, heldout_name="elsewhere", num_proc=1)
    write_shards(tmp_path / "raw", list_shards(params)[0])
    counts = write_stream(tmp_path / "raw", tmp_path / "out", tokenizer, params, max_length=LENGTH, heldout=held)
    assert (counts["heldout_documents"], counts["documents"]) == (1, 88)
    texts[0] = texts[0][1:]
    found = TextStream(tmp_path / "out", tokenizer).read(iter(range(200)), {})
    assert [sample.tokens.tolist() for sample in found] == expected(tokenizer, texts, 200)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such file; it was there"),
        (lambda path: path.write_text("{}"), "has 2 bytes and had"),
        (lambda path: path.write_text(" " * path.stat().st_size), "no text in it"),
    ],
)
def test_a_shard_that_changed(damage, message, shards, tokenizer, tmp_path):
    folder, _ = shards
    stream = describe(folder, tmp_path, tokenizer)
    damage(folder / "1.jsonl")
    with pytest.raises(ValueError, match=message):
        list(stream.read(iter(range(3 * RUN)), {}))


def test_a_stream_is_other_data_if_the_tokenizer_is(shards, tokenizer, make_tokenizer, tmp_path):
    folder, _ = shards
    for name, used in (("a", tokenizer), ("b", tokenizer), ("c", make_tokenizer(eos=False))):
        describe(folder, tmp_path / name, used)
    files = [(tmp_path / name / "stream" / STREAM_FILE).read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "builtin"}, "streaming must be false"),
        ({"name": "x", "heldout_fraction": 0.1}, "heldout_fraction must be empty"),
        ({"name": "x", "heldout_split": "test", "columns": ["a"]}, "columns must be empty"),
        ({"name": "x", "heldout_split": "test", "remainder": "pad"}, "remainder drop"),
        ({"name": "x", "heldout_split": "test", "pack_to_max_length": False}, "pack_to_max_length must be true"),
    ],
)
def test_what_cannot_be_streamed(settings, message):
    with pytest.raises(ParamsError, match=message):
        validated(TextData, settings | {"streaming": True}, "here")


def test_slices_are_not_streamed(shards):
    params = TextData(name=str(shards[0]), split="train[:1%]", streaming=True, heldout_name="elsewhere")
    with pytest.raises(ValueError, match="must name whole splits"):
        list_shards(params)
