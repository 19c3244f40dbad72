"""Local sources: which files and rows are used, what is held out, and that the network is never used."""

import gzip
import hashlib
import json
import socket
from itertools import count, islice, repeat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from qwen3llada.corpus.builtin.params import BuiltinParams
from qwen3llada.corpus.fetch.copying import land
from qwen3llada.corpus.fetch.download import download, source_notes
from qwen3llada.corpus.fetch.local import is_local, licence_of, local_files
from qwen3llada.corpus.fetch.mixture import interleave
from qwen3llada.corpus.fetch.selection import Files, Selection
from qwen3llada.corpus.fetch.slices import Slice, parse_split
from qwen3llada.corpus.fetch.sources import ConversationData, ModelSource, TextData
from qwen3llada.corpus.files.reading import data_files, read_blocks
from qwen3llada.errors import InputError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to open a connection or look up a name fails."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"a local source used the network: {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(folder):
    return [row.value for file in data_files(folder) for block in read_blocks(file) for row in block.rows()]


@pytest.mark.parametrize("count", [1, 3, 10, 999])
@pytest.mark.parametrize(
    "text",
    ["train", "train[:10%]", "train[33%:67%]", "train[2:5]", "train[-3:]", "train[:-30%]", "train[:1%]+train[5:]"],
)
def test_slices_are_those_of_datasets(text, count):
    from datasets import ReadInstruction

    expected = ReadInstruction.from_spec(text).to_absolute({"train": max(count, 5)})
    got = [part.rows(max(count, 5)) for part in parse_split(text)]
    assert got == [range(part.from_, max(part.from_, part.to)) for part in expected]


def test_slices_beyond_the_rows_end_with_them():
    assert Slice("train", "5", "20").rows(8) == range(5, 8)
    assert list(Slice("train", "9", None).rows(8)) == []


@pytest.mark.parametrize("text", ["", "train[", "train[a:b]", "train[::2]", "a b", "train[:50.5%]", "train[:120%]"])
def test_malformed_slices_are_refused(text):
    with pytest.raises(ValueError, match=r"must be like|must lie between"):
        [part.rows(10) for part in parse_split(text)]


def test_what_is_local_is_told_from_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert is_local("org/name")
    assert is_local("data/*.jsonl")
    assert not is_local("Qwen/Qwen3-0.6B-Base")
    assert not is_local("wikitext")
    for path in ("./org/other", "/no/where", "data/train.jsonl", "a/b/c"):
        with pytest.raises(ValueError, match=f"{path}: no such file or folder"):
            is_local(path)


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        (["b.jsonl", "a.txt", "c.csv.gz", "README.md"], "train", ["a.txt", "b.jsonl", "c.csv.gz"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (
            ["train-00000.parquet", "train-00001.parquet", "validation-0.parquet"],
            "train",
            ["train-00000.parquet", "train-00001.parquet"],
        ),
        (
            ["train/x/1.json", "train/0.json", "test/0.json", ".hidden/train.json"],
            "train",
            ["train/0.json", "train/x/1.json"],
        ),
        (["gsm8k_train.jsonl", "gsm8k_test.jsonl"], "test", ["gsm8k_test.jsonl"]),
        (["own/1.jsonl", "train/1.jsonl"], "own", ["own/1.jsonl"]),
        (["dataset_info.json", "data-00000-of-00001.arrow"], "train", ["data-00000-of-00001.arrow"]),
    ],
)
def test_the_files_of_a_split(tmp_path, files, split, expected):
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert [path.relative_to(tmp_path).as_posix() for path in local_files(str(tmp_path), split)] == expected


def fill(folder, *names):
    for name in names:
        write_jsonl(folder / name, [{"question": name, "answer": "a"}])


def test_files_that_describe_data_are_no_data(tmp_path, checkpoint, local):
    folder = tmp_path / "chat"
    fill(folder, "chat.jsonl", "dataset_infos.json", "config.json", "tokenizer_config.json", "Package.json")
    fill(folder, "requirements.txt", "requirements-dev.txt", "LICENSE.txt", "deep/README.txt")
    assert [path.name for path in local_files(str(folder), "train")] == ["chat.jsonl"]
    assert [path.name for path in local_files(str(folder / "*"), "train")] == ["chat.jsonl"]
    with pytest.raises(InputError, match=r"config\.json: by its name it describes data and holds none"):
        local_files(str(folder / "config.json"), "train")
    write_jsonl(folder / "chat.jsonl", CHATS)
    record = run(tmp_path, checkpoint, local[0], local_chats(folder))
    assert len(record["conversations"]["left_out"]) == 8
    assert "deep/README.txt" in record["conversations"]["left_out"]
    assert any("dataset_infos.json" in note for note in source_notes(record["conversations"]))


def test_the_files_of_a_local_checkpoint_are_not_called_left_out(tmp_path, checkpoint, local):
    """Names that describe data in a data set belong to the model in a checkpoint."""
    record = run(tmp_path, checkpoint, local[0], local[1])
    assert {"config.json", "tokenizer.json"} < set(record["model"]["files"])
    assert source_notes(record["model"]) == []


@pytest.mark.parametrize("listed", [False, True])
def test_one_of_several_configurations_is_asked_for(tmp_path, listed):
    """Two folders with the same splits, or the configurations listed in the head of README.md."""
    folder = tmp_path / "gsm8k"
    if listed:
        fill(folder, "main-train.jsonl", "main-test.jsonl", "socratic-train.jsonl")
        entries = [
            f"- config_name: {name}\n  data_files:\n  - {{split: train, path: {name}-*}}\n"
            for name in ("main", "socratic")
        ]
        (folder / "README.md").write_text("---\nlicense: mit\nconfigs:\n" + "".join(entries) + "---\n# GSM8K\n")
        expected = ["main-train.jsonl"]
    else:
        fill(folder, "main/train-0.jsonl", "main/test-0.jsonl", "socratic/train-0.jsonl")
        expected = ["main/train-0.jsonl"]
    with pytest.raises(InputError, match=r"gsm8k: has 2 configurations: main, socratic; set config to one of them"):
        local_files(str(folder), "train")
    found = local_files(str(folder), "train", "main")
    assert [path.relative_to(folder).as_posix() for path in found] == expected
    with pytest.raises(InputError, match="config='german' is none of its configurations: main, socratic"):
        local_files(str(folder), "train", "german")


def test_folders_of_one_split_are_no_configurations(tmp_path):
    fill(tmp_path, "train/a/1.jsonl", "train/b/1.jsonl", "test/1.jsonl")
    assert len(local_files(str(tmp_path), "train")) == 2


@pytest.mark.parametrize(
    ("split", "heldout", "rows"),
    [("train", "train", 200), ("train[:100]", "train[90:120]", 10), ("train[:50%]+train[150:]", "train[-5:]", 5)],
)
def test_rows_that_are_trained_on_and_held_out_are_refused(tmp_path, checkpoint, local, split, heldout, rows):
    """Also if the same file has another name. Adjacent slices are allowed."""
    (tmp_path / "other.jsonl").symlink_to(tmp_path / "texts.jsonl")
    name = str(tmp_path / "texts.jsonl")
    for other in (None, str(tmp_path / "other.jsonl")):
        text = TextData(name=name, split=split, heldout_name=other, heldout_split=heldout)
        with pytest.raises(InputError, match=rf"{rows} of its rows would be trained on and held out"):
            run(tmp_path, checkpoint, text, local[1])
    assert not (tmp_path / "raw").exists()
    run(tmp_path, checkpoint, TextData(name=name, split="train[:100]", heldout_split="train[100:]"), local[1])


def test_conversations_are_divided_by_what_the_leakage_rule_compares(tmp_path, checkpoint, local):
    """Prompts that differ only in case and white space are one. No later prompt may open a held-out conversation."""

    def turns(*asked):
        return {
            "conversations": [t for q in asked for t in ({"from": "human", "value": q}, {"from": "gpt", "value": "a"})]
        }

    rows = [turns(form.format(i)) for i in range(60) for form in ("Question {}?", "question  {}?", "QUESTION\n{}?")]
    rows += [turns(f"other {i}", f"question {i}?") for i in range(60)]
    chats = local_chats(write_jsonl(tmp_path / "chats.jsonl", rows), heldout_fraction=0.3)
    record = run(tmp_path, checkpoint, local[0], chats)
    train, heldout = (rows_of(tmp_path / "raw/conversations" / split) for split in ("train", "heldout"))

    def asked(row):
        return [" ".join(t["value"].lower().split()) for t in row["conversations"][::2]]

    openings = {asked(row)[0] for row in heldout}
    assert len(openings) > 15
    assert not [row for row in train if openings & set(asked(row))]
    assert record["conversations"]["asks_heldout"] == len(rows) - len(train) - len(heldout) > 0


def test_links_are_followed_and_globs_may_name_folders(tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "data"
    for path in (elsewhere / "b.jsonl", folder / "part-0" / "a.jsonl", folder / "part-1" / "c.jsonl"):
        write_jsonl(path, [{}])
    (folder / "part-2").mkdir()
    (folder / "train").symlink_to(elsewhere)
    (folder / "train" / "round").symlink_to(folder)
    assert [path.name for path in local_files(str(folder), "train")] == ["b.jsonl"]
    assert [path.name for path in local_files(str(folder / "part-*"), "train")] == ["a.jsonl", "c.jsonl"]
    assert [path.name for path in local_files(str(folder / "part-*" / "**"), "train")] == ["a.jsonl", "c.jsonl"]


def test_splits_that_do_not_exist_are_named(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="no split='validation' in it; found: test, train"):
        local_files(str(tmp_path), "validation")
    with pytest.raises(ValueError, match="split='test' must be train; only folders have other splits"):
        local_files(str(tmp_path / "train.jsonl"), "test")
    with pytest.raises(ValueError, match="no data file among the 0 files"):
        local_files(str(tmp_path / "*.parquet"), "train")
    assert [path.name for path in local_files(str(tmp_path / "t*.jsonl"), "train")] == ["test.jsonl", "train.jsonl"]


def test_whole_files_are_copied_byte_by_byte(tmp_path):
    damaged = b'{"a": 1}\n{broken\n\xff\xfe\n'
    (tmp_path / "a.jsonl").write_bytes(damaged)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"a": 2}\n'))
    paths = [tmp_path / "b.jsonl.gz", tmp_path / "a.jsonl"]
    land([Files(paths, Slice("train"))], tmp_path / "out", None, Selection())
    copies = sorted((tmp_path / "out").iterdir())
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in paths]  # also in their order


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json", "csv", "txt"])
def test_slices_run_over_the_files_of_a_split(tmp_path, monkeypatch, kind):
    for module in ("text.documents", "files.formats", "files.rows"):
        monkeypatch.setattr(f"qwen3llada.corpus.{module}.BLOCK_BYTES", 16)
    texts = [f"row {i}" for i in range(30)]
    paths = []
    for number, part in enumerate((texts[:12], texts[12:30])):
        path = tmp_path / f"{number}.{kind}"
        rows = [{"text": text} for text in part]
        if kind == "jsonl":
            write_jsonl(path, rows)
        elif kind == "json":
            path.write_text(json.dumps(rows))
        elif kind == "csv":
            path.write_text("text\n" + "\n".join(part) + "\n")
        elif kind == "txt":
            path.write_text("\n".join(part) + "\n")
        else:
            pq.write_table(pa.table({"text": part}), path)
        paths.append(path)
    selection = Selection(txt_unit="line")
    parts = [Files(paths, part) for part in parse_split("train[10:14]+train[-10%:]")]
    land(parts, tmp_path / "out", None, selection)
    assert [row["text"] for row in rows_of(tmp_path / "out")] == texts[10:14] + texts[27:]


def test_damaged_lines_outlive_a_slice(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 0}\n{broken\n{"a":   2}\n{"a": 3}\n')
    land([Files([path], Slice("train", "1", "3"))], tmp_path / "out", None, Selection())
    assert (tmp_path / "out" / "a.jsonl").read_bytes() == b'{broken\n{"a":   2}\n'


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json"])
def test_columns_are_kept_and_missing_ones_named(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    rows = [{"id": 1, "text": "x", "url": "u"}]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    sources = [Files([path], Slice("train"))]
    land(sources, tmp_path / "out", None, Selection(columns=["text", "id"]))
    assert rows_of(tmp_path / "out") == [{"text": "x", "id": 1}]
    with pytest.raises(ValueError, match=rf"a.{kind}.*: no columns \['name'\]; it has .*url"):
        land(sources, tmp_path / "other", None, Selection(columns=["name"]))


def local_text(path, **knobs):
    return TextData(**{"name": str(path), "heldout_fraction": 0.25} | knobs)


def local_chats(path, **knobs):
    return ConversationData(**{"name": str(path), "heldout_fraction": 0.25} | knobs)


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin", "optimizer.pt"):
        (folder / name).write_text(name)
    return ModelSource(source=str(folder))


def run(tmp_path, checkpoint, text, chats):
    return download(tmp_path / "raw", model=checkpoint, text=text, conversations=chats, world=BuiltinParams())


TEXTS = [{"text": f"text {i % 150}", "id": i} for i in range(200)]
CHATS = [{"question": f"q {i % 150}", "answer": f"a {i}"} for i in range(200)]


@pytest.fixture
def local(tmp_path):
    return local_text(write_jsonl(tmp_path / "texts.jsonl", TEXTS)), local_chats(
        write_jsonl(tmp_path / "chats.jsonl", CHATS)
    )


def test_what_is_held_out_is_drawn_by_content(tmp_path, checkpoint, local):
    """The same text or question is on one side only, whatever else is in the row, and wherever the row stands."""
    run(tmp_path, checkpoint, *local)
    raw = tmp_path / "raw"
    for kind, column, rows in (("text", "text", TEXTS), ("conversations", "question", CHATS)):
        train, heldout = rows_of(raw / kind / "train"), rows_of(raw / kind / "heldout")
        assert sorted(map(str, train + heldout)) == sorted(map(str, rows))
        assert {row[column] for row in train}.isdisjoint(row[column] for row in heldout)
        assert 20 < len(heldout) < 80  # 200 rows, a quarter: 50 ± 3.5 standard deviations of 150 clusters
    before = {row["text"] for row in rows_of(raw / "text" / "heldout")}
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "new"}, *reversed(TEXTS)])
    run(tmp_path, checkpoint, *local)
    assert {row["text"] for row in rows_of(raw / "text" / "heldout")} - {"new"} == before


def test_the_record_of_sources_is_true(tmp_path, checkpoint, local):
    (tmp_path / "LICENSE").write_text("\n  MIT License\n\ntext")
    record = run(tmp_path, checkpoint, *local)
    raw = tmp_path / "raw"
    assert json.loads((raw / "SOURCE.json").read_text()) == record
    assert list(record["model"]["files"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    for name, entry in record.items():
        assert {path.relative_to(raw / name).as_posix() for path in (raw / name).rglob("*") if path.is_file()} == set(
            entry["files"]
        )
        for path, facts in entry["files"].items():
            data = (raw / name / path).read_bytes()
            assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert record["text"]["source"] == str(tmp_path / "texts.jsonl")
    assert record["text"]["licence"] == "MIT License"
    assert record["text"]["heldout_fraction"] == 0.25
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\n# Data\n")
    assert licence_of(str(tmp_path / "texts.jsonl")) == "cc-by-4.0"


def test_held_out_data_of_its_own(tmp_path, checkpoint):
    folder = tmp_path / "data"
    for split, texts in (("train", TEXTS[:5]), ("test", TEXTS[5:7])):
        write_jsonl(folder / f"{split}.jsonl", texts)
    other = write_jsonl(tmp_path / "other.jsonl", CHATS[:1])
    text = TextData(name=str(folder), heldout_split="test[:1]")
    chats = ConversationData(
        name=str(write_jsonl(tmp_path / "chats.jsonl", CHATS)), split="train[:2]", heldout_name=str(other)
    )
    record = run(tmp_path, checkpoint, text, chats)
    raw = tmp_path / "raw"
    assert rows_of(raw / "text" / "train") == TEXTS[:5]
    assert rows_of(raw / "text" / "heldout") == TEXTS[5:6]
    assert rows_of(raw / "conversations" / "train") == CHATS[:2]
    assert rows_of(raw / "conversations" / "heldout") == CHATS[:1]
    assert record["text"]["heldout"]["split"] == "test[:1]"


def test_a_text_file_is_divided_by_its_paragraphs(tmp_path, checkpoint, local):
    path = tmp_path / "play.txt"
    paragraphs = [f"Speaker {i}:\nsays {i}" for i in range(60)]
    path.write_text("\n\n".join(paragraphs) + "\n")
    run(tmp_path, checkpoint, local_text(path, txt_unit="paragraph"), local[1])
    train, heldout = (rows_of(tmp_path / "raw" / "text" / split) for split in ("train", "heldout"))
    assert sorted(row["text"] for row in train + heldout) == sorted(paragraphs)
    units = r".*txt_unit: paragraph \| line"
    with pytest.raises(ValueError, match=r"no row for (train|heldout) is left by heldout_fraction=0.25" + units):
        run(tmp_path, checkpoint, local_text(path, txt_unit="file"), local[1])
    sources = [{"name": str(path)}, {"name": str(path)}]
    mixture = TextData(name="mixture", mixture=sources, txt_unit="file", heldout_fraction=0.25)
    with pytest.raises(ValueError, match=r"no row for (train|heldout)" + units):  # in a mixture, too
        run(tmp_path, checkpoint, mixture, local[1])
    path.write_text("one line\n")
    with pytest.raises(ValueError, match=r"is left by heldout_fraction=0.25$"):  # more units would not help
        run(tmp_path, checkpoint, local_text(path, txt_unit="line"), local[1])


def test_arrow_folders_of_datasets_are_read_without_the_network(tmp_path, checkpoint):
    import datasets

    table = datasets.Dataset.from_list(TEXTS)
    datasets.DatasetDict({"train": table, "test": table.select(range(3))}).save_to_disk(str(tmp_path / "saved"))
    turns = [{"conversations": [{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": "a"}]} for i in range(40)]
    datasets.Dataset.from_list(turns).save_to_disk(str(tmp_path / "chats"))
    text = TextData(name=str(tmp_path / "saved"), heldout_split="test")
    run(tmp_path, checkpoint, text, local_chats(tmp_path / "chats"))
    raw = tmp_path / "raw"
    assert rows_of(raw / "text" / "train") == TEXTS
    assert rows_of(raw / "text" / "heldout") == TEXTS[:3]
    landed = rows_of(raw / "conversations" / "train") + rows_of(raw / "conversations" / "heldout")
    assert sorted(map(str, landed)) == sorted(map(str, turns))
    datasets.load_from_disk(str(tmp_path / "chats")).map(lambda row: {"more": 1})  # leaves a cache beside the data
    assert len([*(tmp_path / "chats").glob("*.arrow")]) == 2
    assert [path.name for path in local_files(str(tmp_path / "chats"), "train")] == ["data-00000-of-00001.arrow"]


def test_nothing_is_written_where_a_source_is_missing(tmp_path, checkpoint, local):
    with pytest.raises(ValueError, match="/no/model: no such file or folder"):
        run(tmp_path, ModelSource(source="/no/model"), *local)
    with pytest.raises(ValueError, match=r"/no/\*.jsonl: no data file among the 0 files that it names"):
        run(tmp_path, checkpoint, local[0], local_chats("/no/*.jsonl"))
    with pytest.raises(ValueError, match="revision='main' must be null, a local folder has none"):
        run(tmp_path, ModelSource(source=checkpoint.source, revision="main"), *local)
    with pytest.raises(ValueError, match="config='en' must be null, a local source has none"):
        run(tmp_path, checkpoint, local[0], local_chats(tmp_path / "chats.jsonl", config="en"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no checkpoint in it; it must hold config.json and \*.safetensors"):
        run(tmp_path, ModelSource(source=str(tmp_path / "empty")), *local)
    assert not (tmp_path / "raw").exists()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failure_leaves_all_outputs_as_they_were(tmp_path, checkpoint, local):
    """New text is available, new conversations are not: new text must not end up beside old conversations."""
    run(tmp_path, checkpoint, *local)
    before = contents(tmp_path / "raw")
    write_jsonl(tmp_path / "texts.jsonl", [{"text": f"new {i}"} for i in range(40)])
    with pytest.raises(ValueError, match="no columns"):
        run(tmp_path, checkpoint, local[0], local_chats(tmp_path / "chats.jsonl", columns=["nothing"]))
    assert contents(tmp_path / "raw") == before
    run(tmp_path, checkpoint, *local)
    assert contents(tmp_path / "raw").keys() - before.keys() == set()
    assert all(row["text"].startswith("new") for row in rows_of(tmp_path / "raw/text/train"))


def test_the_builtin_source_has_the_same_layout(tmp_path):
    world = BuiltinParams(
        people=4, documents=100, heldout_documents=5, bpe_tokens=300, hidden_size=16, layers=1, head_dim=8
    )
    raw = tmp_path / "raw"
    record = download(raw, model=ModelSource(), text=TextData(), conversations=ConversationData(), world=world)
    assert (raw / "model" / "config.json").is_file()
    assert len(rows_of(raw / "text" / "train")) == 100
    assert len(rows_of(raw / "text" / "heldout")) == 5
    assert rows_of(raw / "conversations" / "heldout")[0]["conversations"][0]["from"] == "human"
    assert {entry["source"] for entry in record.values()} == {"builtin"}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"name": "x"}, "exactly one must be given"),
        ({"name": "x", "heldout_fraction": 0.1, "heldout_split": "test"}, "exactly one must be given"),
        ({"heldout_split": "test"}, "heldout_split must be empty with name: builtin"),
        ({"heldout_fraction": 0.1}, "heldout_fraction must be 0 and split train with name: builtin"),
        ({"revision": "main"}, "revision must be empty with name: builtin"),
        ({"name": "x", "heldout_fraction": 1.0}, "less than 1"),
    ],
)
def test_contradicting_parameters_are_refused(knobs, message):
    with pytest.raises(ValidationError, match=message):
        TextData(**knobs)


def test_a_mixture_keeps_the_shares_at_every_point():
    weights = [0.5, 3, 1.5]
    items = list(islice(interleave([zip(repeat(i), count()) for i in range(3)], weights), 1000))
    for end in range(1, 1001):
        for source, weight in enumerate(weights):
            got = sum(item[0] == source for item in items[:end])
            assert abs(got - weight / 5 * end) < 1.5
    for source in range(3):
        assert [n for i, n in items if i == source] == list(range(sum(i == source for i, _ in items)))


def test_a_mixture_ends_with_its_first_source():
    mixed = "".join(interleave([iter("aaaa"), iter("bbbbbbbb")], [2, 1]))
    assert mixed == "abaaba"


def test_sources_of_different_columns_are_mixed(tmp_path, checkpoint):
    one = write_jsonl(tmp_path / "one.jsonl", [{"id": i, "content": f"one {i}"} for i in range(300)])
    pq.write_table(pa.table({"text": [f"two {i}" for i in range(500)]}), tmp_path / "two.parquet")
    parts = [
        {"name": str(one), "split": "train[:90]", "weight": 2},
        {"name": str(tmp_path / "two.parquet"), "weight": 1},
    ]
    text = TextData(name="mixture", mixture=parts, heldout_fraction=0.2)
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"question": f"q {i}", "answer": "a"} for i in range(9)])
    told = write_jsonl(
        tmp_path / "told.jsonl", [{"messages": [{"role": "user", "content": f"m {i}"}]} for i in range(9)]
    )
    mixed = [{"name": str(asked)}, {"name": str(told)}]
    apart = write_jsonl(tmp_path / "apart.jsonl", [{"question": f"other {i}", "answer": "a"} for i in range(9)])
    chats = ConversationData(name="mixture", mixture=mixed, heldout_name=str(apart), heldout_split="train[:2]")
    record = run(tmp_path, checkpoint, text, chats)
    raw = tmp_path / "raw"
    train, heldout = rows_of(raw / "text" / "train"), rows_of(raw / "text" / "heldout")
    texts = {row["text"] for row in train + heldout}
    assert {text for text in texts if text.startswith("one")} == {f"one {i}" for i in range(90)}
    assert {text for text in texts if text.startswith("two")} == {f"two {i}" for i in range(45)}
    assert 10 < len(heldout) < 50  # 135 rows, a fifth
    assert all(row.keys() == {"text"} for row in train)
    assert [next(iter(row)) for row in rows_of(raw / "conversations" / "train")[:4]] == ["question", "messages"] * 2
    assert len(rows_of(raw / "conversations" / "heldout")) == 2
    assert [part["weight"] for part in record["text"]["mixture"]] == [2, 1]
    with pytest.raises(ValidationError, match="mixture must list two sources or more with name: mixture"):
        TextData(name="mixture", mixture=parts[:1], heldout_fraction=0.1)
    with pytest.raises(
        ValidationError, match="mixture must list two sources or more with name: mixture, and none without"
    ):
        TextData(name="x", mixture=parts, heldout_fraction=0.1)
