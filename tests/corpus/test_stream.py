"""Text that is tokenized while it is read, against sequences put together from the bytes of the files."""

import gzip
import json
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3llada.commandline import ParamsError, validated
from qwen3llada.corpus import formats
from qwen3llada.corpus.batching import make_loader
from qwen3llada.corpus.builtin import BuiltinParams
from qwen3llada.corpus.download import download
from qwen3llada.corpus.sources import ConversationData, ModelSource, TextData
from qwen3llada.corpus.stream import RUN, STREAM_FILE, TextStream
from qwen3llada.corpus.stream_source import list_shards, write_shards, write_stream
from qwen3llada.diffusion.noising import NoiseParams

LENGTH = 16
NOISE = NoiseParams.model_validate({"random_length_prob": 0.0})


@pytest.fixture
def shards(tmp_path):
    """Three shards of other sizes and formats, of which the second needs several blocks; and their documents."""
    texts = [[f"shard {s} document {d} {'x' * (d * 7 % 40)}ö" for d in range(n)] for s, n in enumerate((9, 40, 14))]
    texts[1][3] = " "  # blank: no document
    folder = tmp_path / "shards"
    folder.mkdir()
    lines = ["".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(part)) for part in texts]
    (folder / "0.jsonl.gz").write_bytes(gzip.compress(lines[0].encode()))
    (folder / "1.jsonl").write_text(lines[1])
    pq.write_table(pa.table({"id": range(14), "text": texts[2]}), folder / "2.parquet", row_group_size=5)
    return folder, [[text for text in part if text.strip()] for part in texts]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Files of some kilobytes have several blocks."""
    monkeypatch.setattr("qwen3llada.corpus.blocks.BLOCK_BYTES", 300)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 300)


def describe(folder, out, tokenizer, **settings):
    params = TextData(name=str(folder), streaming=True, heldout_name="elsewhere", **settings)
    found, _ = list_shards(params)
    write_shards(out / "raw", found)
    write_stream(out / "raw", out / "stream", tokenizer, params, max_length=LENGTH)
    return TextStream(out / "stream", tokenizer)


def expected(tokenizer, texts, samples):
    """The first samples, by way of the whole token sequences of all lanes; here each shard is a lane."""
    backend = tokenizer.backend_tokenizer
    lanes = []
    for part in texts:
        once = [i for text in part for i in [*backend.encode(text, add_special_tokens=False).ids, 0]]
        once = [tokenizer.eos_token_id if i == 0 else i for i in once]
        endless = once * (samples * LENGTH // len(once) + 2)
        lanes.append([endless[i : i + LENGTH] for i in range(0, samples * LENGTH, LENGTH)])
    order = []
    while len(order) < samples:
        for lane in lanes:
            order += lane[:RUN]
            del lane[:RUN]
    return order[:samples]


def rows(batches):
    return {int(i): row.tolist() for b in batches for i, row in zip(b.indices, b.tokens, strict=True)}


def loader(stream, **settings):
    return make_loader(stream, NOISE, seed=0, epoch=0, mask_token_id=3, **settings)


def test_samples_are_the_documents_joined_and_cut(shards, tokenizer, tmp_path):
    """Over the end of every shard, which are read again from their beginning."""
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
        batches = loader(stream, micro_batch_size=micro_batch, accumulation=accumulation, **layout)
        part = rows(islice(batches, 7 * accumulation))
        assert not part.keys() & found.keys()
        found |= part
    assert [found[i] for i in range(56)] == expected(tokenizer, texts, 56)


@pytest.mark.parametrize("steps", [1, 4, 7, 23])
@pytest.mark.parametrize("workers", [0, 2])
def test_reading_goes_on_from_the_cursors_of_all_readers(steps, workers, shards, tokenizer, tmp_path):
    """Two processes stop in the middle; one goes on, with another number of workers."""
    folder, texts = shards
    stream = describe(folder, tmp_path, tokenizer)
    cursors = {}
    for index in range(2):
        for batch in islice(loader(stream, micro_batch_size=2, num_processes=2, process_index=index), steps):
            cursors |= batch.cursors
            cursors = stream.needed(cursors)
    assert 0 < len(cursors) <= stream.lanes
    stored = json.loads(json.dumps(list(cursors.items())))
    batches = loader(stream, micro_batch_size=4, start_step=steps, cursors=dict(stored), num_workers=workers)
    assert rows(islice(batches, 5)) == dict(
        enumerate(expected(tokenizer, texts, 4 * (steps + 5))[4 * steps :], 4 * steps)
    )


def test_what_was_read_is_not_read_again(shards, tokenizer, tmp_path):
    """A lane of two shards that has come to its second needs the first no more."""
    folder, _ = shards
    described = describe(folder, tmp_path, tokenizer)
    described.lanes = 1
    whole = list(described.read(iter(range(300)), {}))
    place = next(i for i, sample in enumerate(whole) if sample.cursor[0] == 1 and sample.cursor[1] == 2)
    (folder / "0.jsonl.gz").unlink()
    rest = described.read(iter(range(place + 1, place + 20)), {place: whole[place].cursor})
    for sample, before in zip(rest, whole[place + 1 : place + 20], strict=True):
        assert np.array_equal(sample.tokens, before.tokens)
        assert sample.cursor == before.cursor


def test_no_shard_is_opened_before_training(tmp_path, tokenizer):
    """What is no parquet at all is found by the reader that comes to it, not before."""
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
    write_stream(tmp_path / "raw/text/train", tmp_path / "out", tokenizer, text, max_length=8)
    with pytest.raises(ValueError, match=r"train-0\.parquet: damaged parquet file"):
        next(TextStream(tmp_path / "out", tokenizer).read(iter([0]), {}))


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
