"""Good conversations damaged in 25 ways, as JSON lines and as Parquet: each damage is caught by its rule."""

import copy
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3llada.corpus.validation.gate import InvalidConversations, validate
from qwen3llada.corpus.validation.rules import Rule, Rules, ValidateParams

pytestmark = pytest.mark.usefixtures("without_docs")
LIMIT = 600  # tokens (here bytes) of a record

STRICT = Rules(**{name: Rule() for name in Rules.model_fields})
QUARANTINE = ValidateParams(on_invalid="quarantine", max_invalid_fraction=0.99, max_tokens=LIMIT, rules=STRICT)


def good(number):
    asked = [("human", f"What is {number}?"), ("gpt", f"{number}, a number.")]
    turns = [*asked, ("human", f"And {number} + 1?"), ("gpt", f"{number + 1}.")]
    return {"conversations": [{"from": role, "value": value} for role, value in turns], "system": f"Mind {number}."}


HELDOUT = [good(1000 + i) for i in range(4)]


def turn(record, number=0):
    return record["conversations"][number]


def replaced(number, **values):
    """A damage that changes a turn."""

    def damage(record):
        turn(record, number).update(values)
        return record

    return damage


def with_turns(*roles):
    """A damage that leaves turns with these roles."""

    def damage(record):
        record["conversations"] = [{"from": role, "value": f"{role} {i}"} for i, role in enumerate(roles)]
        return record

    return damage


def swapped(record):
    for single in record["conversations"]:
        single["from"] = {"human": "gpt", "gpt": "human"}[single["from"]]
    record["conversations"] = record["conversations"][:2]
    return record


def without_value(record):
    del turn(record, 1)["value"]
    return record


def nested(record):
    return record | {"conversations": [record["conversations"]]}


def duplicate(record):
    return good(0)


def conflicting(record):
    other = good(0)
    turn(other, 3)["value"] = "Something else."
    return other


def leaked(record):
    turn(record, 0)["value"] = "  what is\t1002? "  # differences in whitespace and case do not hide it
    return record


def line(record):
    return json.dumps(record, ensure_ascii=False).encode()


#: Damage that fits the table of the good records: name -> (rule, damage).
ROWS = {
    "wrong role": ("roles", replaced(2, **{"from": "robot"})),
    "swapped roles": ("pairs", swapped),
    "empty text": ("not_blank", replaced(1, value="")),
    "white space only": ("not_blank", replaced(0, value=" \n\t ")),
    "null": ("structure", replaced(1, value=None)),
    "huge turn": ("length", replaced(3, value="word " * LIMIT)),
    "control characters": ("control_characters", replaced(1, value="a\x07b\x00")),
    "byte order mark": ("control_characters", replaced(0, value="\ufeffWhat?")),
    "duplicate": ("duplicates", duplicate),
    "conflicting answers": ("conflicts", conflicting),
    "answer only": ("pairs", with_turns("gpt")),
    "human only": ("pairs", with_turns("human")),
    "three humans in a row": ("alternation", with_turns("human", "human", "human", "gpt")),
    "mask-token text": ("control_tokens", replaced(1, value="It is <|mask|>.")),
    "leakage": ("leakage", leaked),
}
#: Damage that makes a line of JSON different from all others, or no JSON at all.
LINES = {
    "missing key": ("structure", without_value),
    "wrong type": ("structure", lambda record: record | {"conversations": "human: hi"}),
    "nested lists": ("structure", nested),
    "number for text": ("structure", replaced(1, value=42)),
    "lone surrogate": ("unicode", lambda record: json.dumps(replaced(1, value="a\ud800b")(record)).encode()),
    "system as list": ("structure", lambda record: record | {"system": ["Mind."]}),
    "truncated line": ("readable", lambda record: line(record)[:60]),
    "wrong encoding": ("readable", lambda record: line(replaced(1, value="über")(record)).decode().encode("latin-1")),
    "renamed column": ("structure", lambda record: {"dialogue": record["conversations"]}),
}
#: The same in parquet, where a column has one type: a table of its own for each. Name -> (rule, damaged rows).
TABLES = {
    "missing key": ("structure", [{"conversations": [{"from": "human"}, {"from": "gpt"}]}]),
    "wrong type": ("structure", [{"conversations": "human: hi"}]),
    "nested lists": ("structure", [{"conversations": [good(500)["conversations"]]}]),
    "number for text": ("structure", [{"conversations": [{"from": "human", "value": 1}, {"from": "gpt", "value": 2}]}]),
    "system as list": ("structure", [good(501) | {"system": ["Mind."]}]),
    "renamed column": ("structure", [{"dialogue": good(502)["conversations"]}]),
}


#: Rules that a damage breaks besides its own.
IMPLIED = {"wrong role": ["alternation"], "swapped roles": ["alternation"], "answer only": ["alternation"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "max_position_embeddings": 4096}))
    return folder


def damaged(damages):
    """Good records with a damaged one after each two; the damaged ones by their index."""
    records, where = [], {}
    for number, (name, (_, damage)) in enumerate(damages.items()):
        records += [good(3 * number), good(3 * number + 1)]
        where[len(records)] = name
        records.append(damage(copy.deepcopy(good(3 * number + 2))))
    return records, where


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((r if isinstance(r, bytes) else line(r)) + b"\n" for r in records))


def run(tmp_path, model, params=QUARANTINE):
    arguments = (tmp_path / "raw", tmp_path / "validated", tmp_path / "reports")
    return validate(*arguments, model_folder=model, params=params, num_proc=1)


def quarantined(tmp_path):
    return [json.loads(text) for text in (tmp_path / "reports" / "quarantine.jsonl").read_text().splitlines()]


def validated(tmp_path, split="train"):
    return [
        json.loads(text) for text in (tmp_path / "validated" / split / "conversations.jsonl").read_text().splitlines()
    ]


def test_every_damage_to_json_lines_is_caught(tmp_path, model):
    damages = ROWS | LINES
    records, where = damaged(damages)
    write_lines(tmp_path / "raw/train/a.jsonl", records)
    write_lines(tmp_path / "raw/heldout/a.jsonl", HELDOUT)
    report = run(tmp_path, model)
    caught = quarantined(tmp_path)
    assert {entry["index"]: where[entry["index"]] for entry in caught} == where
    for entry in caught:
        name = where[entry["index"]]
        assert set(entry["reasons"]) == {damages[name][0], *IMPLIED.get(name, ())}, name
    assert validated(tmp_path) == [record for i, record in enumerate(records) if i not in where]  # nothing is lost
    assert validated(tmp_path, "heldout") == HELDOUT
    raw = [record if isinstance(record, bytes) else line(record) for record in records]
    assert [entry["raw"].encode(errors="surrogateescape") for entry in caught] == [raw[e["index"]] for e in caught]
    assert report["train"]["records"] == len(records)
    assert report["train"]["invalid"] == len(where)


def test_every_damage_to_parquet_is_caught(tmp_path, model):
    records, where = damaged(ROWS)
    train = tmp_path / "raw" / "train"
    train.mkdir(parents=True)
    kind = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
    schema = pa.schema([("conversations", kind), ("system", pa.string())])
    pq.write_table(pa.Table.from_pylist(records, schema), train / "0.parquet", row_group_size=7)
    expected = {("0.parquet", index): ROWS[name][0] for index, name in where.items()}
    for number, (name, (rule, rows)) in enumerate(TABLES.items(), start=1):
        pq.write_table(pa.Table.from_pylist(rows), train / f"{number} {name}.parquet")
        expected |= {(f"{number} {name}.parquet", index): rule for index in range(len(rows))}
    _write_bytes_for_text(train / "9 wrong encoding.parquet", kind)
    expected["9 wrong encoding.parquet", 1] = "unicode"
    (tmp_path / "raw/heldout").mkdir()
    pq.write_table(pa.Table.from_pylist(HELDOUT), tmp_path / "raw/heldout/0.parquet")
    report = run(tmp_path, model)
    caught = {(entry["file"], entry["index_in_file"]): entry for entry in quarantined(tmp_path)}
    assert {place: True for place, entry in caught.items() if expected[place] in entry["reasons"]} == dict.fromkeys(
        expected, True
    )
    kept = [record for i, record in enumerate(records) if i not in where]
    assert validated(tmp_path) == [*kept, good(600)]
    assert all(caught["0.parquet", i]["record"] == records[i] for i in where)
    assert report["train"]["records"] == len(kept) + 1 + len(caught)


def _write_bytes_for_text(path, kind):
    """Two records, in the second of which a text is Latin-1: Arrow does not look."""
    texts = [b"q", b"a", b"\xfcber", b"a"]
    roles = pa.array(["human", "gpt"] * 2)
    good_texts = pa.array([turn["value"].encode() for turn in good(600)["conversations"]] + texts)
    values = pa.Array.from_buffers(pa.string(), len(good_texts), good_texts.buffers())
    roles = pa.array(["human", "gpt"] * 4)
    turns = pa.StructArray.from_arrays([roles, values], fields=list(kind.value_type))
    conversations = pa.ListArray.from_arrays(pa.array([0, 4, 8], pa.int32()), turns)
    pq.write_table(pa.table({"conversations": conversations, "system": ["Mind 600.", None]}), path)


@pytest.mark.parametrize(("kind", "split"), [("jsonl", "train"), ("parquet", "heldout")])
def test_zero_records_are_a_failure(tmp_path, model, kind, split):
    for name in ("train", "heldout"):
        folder = tmp_path / "raw" / name
        folder.mkdir(parents=True)
        rows = [] if name == split else [good(1 if name == "train" else 2)]
        if kind == "jsonl":
            write_lines(folder / "a.jsonl", rows)
        else:
            pq.write_table(pa.Table.from_pylist(rows, pa.Table.from_pylist([good(1)]).schema), folder / "a.parquet")
    with pytest.raises(InvalidConversations, match=f"{split}: no records"):
        run(tmp_path, model)
    assert not (tmp_path / "validated").exists()


def test_a_truncated_parquet_file_is_named(tmp_path, model):
    for name in ("train", "heldout"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([good(1)]), tmp_path / "raw" / name / "a.parquet")
    path = tmp_path / "raw/train/a.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train/a\.parquet: damaged parquet file"):
        run(tmp_path, model)
    assert not (tmp_path / "validated").exists()
