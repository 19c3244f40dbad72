"""Rows of every known shape become the same record, and nothing of them is lost."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3llada.corpus.conversations.mapping import map_question, map_record, record_shape
from qwen3llada.corpus.conversations.records import exchanges
from qwen3llada.corpus.files.reading import read_blocks
from qwen3llada.corpus.validation.record_facts import describe_damage


def turns(*texts, roles=("human", "gpt")):
    """Alternating turns of human and gpt."""
    return [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]


def chat(*pairs):
    """OpenAI's messages."""
    return [{"role": role, "content": content} for role, content in pairs]


GOOD = turns("hi", "yo")
USER, ASSISTANT = ("user", "hi"), ("assistant", "yo")


@pytest.mark.parametrize(
    ("row", "system"),
    [
        ({"conversations": GOOD}, None),
        ({"conversations": GOOD, "system": "be kind"}, "be kind"),
        ({"conversations": turns("hi", "yo", roles=("user", "assistant"))}, None),
        ({"messages": chat(USER, ASSISTANT)}, None),
        ({"messages": [*chat(("system", "s")), *GOOD]}, "s"),
        ({"conversations": {"from": ["human", "gpt"], "value": ["hi", "yo"]}}, None),
        ({"prompt": "hi", "response": "yo"}, None),
        ({"question": "hi", "answer": "yo", "system": "s"}, "s"),
        ({"instruction": "hi", "input": " ", "output": "yo"}, None),
        ({"conversations": None, "prompt": "hi", "response": "yo", "id": 3}, None),
        ({"inputs": "hi", "targets": "yo"}, None),
        ({"system_prompt": "s", "question": "hi", "response": "yo"}, "s"),
        ({"messages": chat(("developer", "s"), USER, ASSISTANT)}, "s"),
        ({"prompt": chat(("system", "s"), USER), "completion": chat(ASSISTANT)}, "s"),
        ({"prompt": chat(USER), "completion": "yo"}, None),
        # fields without a value
        ({"conversations": [], "messages": chat(USER, ASSISTANT)}, None),
        ({"conversations": [{"from": None, "value": None}], "messages": chat(USER, ASSISTANT)}, None),
        ({"prompt": "", "response": "", "question": "hi", "answer": "yo"}, None),
        ({"prompt": "hi", "response": None, "completion": "yo"}, None),
        ({"instruction": "", "input": "hi", "output": "yo"}, None),
        ({"system": "", "system_prompt": "s", "prompt": "hi", "response": "yo"}, "s"),
        ({"system": "", "conversations": [{"from": "system", "value": "s"}, *GOOD]}, "s"),
        ({"system": " ", "conversations": [{"from": "system", "value": "s"}, *GOOD]}, "s"),
        ({"conversations": [{"from": None, "value": None} | turn for turn in chat(USER, ASSISTANT)]}, None),
        ({"messages": [turn | {"role": None, "content": None} for turn in GOOD]}, None),
        ({"messages": [turn | {"value": ""} for turn in chat(USER, ASSISTANT)]}, None),
        ({"conversations": {"from": ["human", "gpt"], "value": ["hi", "yo"], "weight": None}}, None),
        ({"messages": [turn | {"weight": None, "train": None} for turn in chat(USER, ASSISTANT)]}, None),
    ],
)
def test_every_shape_becomes_the_same_record(row, system):
    assert map_record(row) == {"conversations": GOOD, "system": system}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n1 2"),
        ({"instruction": "When?", "context": "It was in 1910.", "response": "1910"}, "When?\nIt was in 1910."),
        ({"question": "When?", "context": "It was in 1910.", "answer": "1910"}, "When?\nIt was in 1910."),
        ({"question": "Is it?", "passage": ["One.", "Two."], "answer": "Yes"}, "Is it?\nOne.\nTwo."),
        ({"instruction": "", "input": "1 2", "context": "Add.", "output": "3"}, "1 2\nAdd."),
        ({"prompt": "Translate: the cat", "input": "the cat", "completion": "die Katze"}, "Translate: the cat"),
        ({"question": "Which?", "choices": ["a cat", "a dog"], "answer": "A"}, "Which?\nA. a cat\nB. a dog"),
        (
            {"question": "Which?", "choices": {"text": ["cat", "dog"], "label": ["1", "2"]}, "answer": "1"},
            "Which?\n1. cat\n2. dog",
        ),
        (
            {"question": "Which?", "options": {"A": "cat", "B": "dog", "C": None}, "answer": "A"},
            "Which?\nA. cat\nB. dog",
        ),
        (
            {"question": "Which?\n(1) cat\n(2) dog", "choices": ["cat", "dog"], "answer": "1"},
            "Which?\n(1) cat\n(2) dog",
        ),
    ],
)
def test_what_a_prompt_is_about_goes_below_it(row, prompt):
    assert map_record(row)["conversations"][0] == {"from": "human", "value": prompt}


@pytest.mark.parametrize(
    "history",
    [
        [["a", "A"], ["b", "B"]],
        turns("a", "A", "b", "B"),
        chat(("user", "a"), ("assistant", "A"), ("user", "b"), ("assistant", "B")),
    ],
)
def test_history_comes_before(history):
    row = {"instruction": "c", "input": "d", "output": "C", "history": history}
    assert map_record(row)["conversations"] == turns("a", "A", "b", "B", "c\nd", "C")


def test_the_parts_of_a_content_list_are_lines():
    parts = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "x"}}, {"text": "two"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "yo"}]}
    assert map_record(row)["conversations"] == turns("one\ntwo", "yo")
    row["messages"][0]["content"] = [{"type": "tool_result", "text": "one"}]
    assert "value of turn 0 is a list, not text" in describe_damage(map_record(row), ["messages"])


def test_reasoning_stands_before_its_answer_as_in_qwens_template():
    thought = "<think>\nHm.\n</think>\n\nyo"
    assistant = {"role": "assistant", "content": "\nyo", "reasoning_content": "\nHm.\n"}
    assert map_record({"messages": [*chat(USER), assistant]})["conversations"] == turns("hi", thought)
    assert map_record({"prompt": "hi", "response": "yo", "reasoning": "Hm."})["conversations"] == turns("hi", thought)
    own = {"prompt": "hi", "response": thought, "reasoning": "Hm."}
    assert map_record(own)["conversations"] == turns("hi", thought)


def test_system_turns_keep_their_place():
    """Leading system turns are the system prompt; later ones join the adjacent prompt."""
    rows = chat(
        *(("system", "s"), ("developer", "t"), ("user", "a"), ("assistant", "A")),
        *(("system", "u"), ("user", "b"), ("system", "v"), ("assistant", "B")),
    )
    assert map_record({"messages": rows}) == {"conversations": turns("a", "A", "u\nb\nv", "B"), "system": "s\nt"}
    assert map_record({"messages": rows, "system_prompt": "r"})["system"] == "r\ns\nt"
    assert map_record({"messages": rows, "system": "s"})["system"] == "s\nt"
    last = map_record({"messages": chat(USER, ASSISTANT, ("system", "s"))})
    assert last["conversations"][-1] == {"from": "system", "value": "s"}  # the rule `roles` rejects it


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"training": False}]
)
def test_marked_answers_are_not_taught(mark):
    messages = chat(("user", "a"), ("assistant", "A"), ("user", "b"), ("assistant", "B"))
    messages[1] |= mark
    record = map_record({"messages": [messages[0] | mark, *messages[1:]]})
    assert record["conversations"] == [
        *turns("a"),
        {"from": "gpt", "value": "A", "train": False},
        *turns("b", "B"),
    ]
    assert [pair.gpt for pair in exchanges(record)] == ["B"]
    assert map_record(record) == record  # also from data/validated


@pytest.mark.parametrize("mark", [{"weight": 1}, {"train": True, "loss": None}, {"loss": 1, "weight": 1.0}])
def test_other_answers_are_taught(mark):
    assert map_record({"messages": [chat(USER)[0], chat(ASSISTANT)[0] | mark]})["conversations"] == GOOD


@pytest.mark.parametrize("mark", [{"weight": 0.5}, {"train": "no"}, {"loss": 2}])
def test_a_mark_that_says_neither_is_damage(mark):
    record = map_record({"messages": [chat(USER)[0], chat(ASSISTANT)[0] | mark]})
    assert "of turn 1 is" in describe_damage(record, ["messages"])


def test_the_answers_in_a_list_of_a_prompt_are_not_taught():
    """TRL computes the loss on the completion."""
    row = {"prompt": chat(("user", "a"), ("assistant", "A"), USER), "completion": chat(ASSISTANT)}
    (pair,) = exchanges(map_record(row))
    assert (pair.human, pair.gpt, pair.history) == ("hi", "yo", (("a", "A"),))


def test_a_question_needs_no_answer():
    for row in (
        {"question": "hi"},
        {"inputs": "hi"},
        {"prompt": chat(USER)},
        {"question": "hi", "prompt": "", "response": ""},
    ):
        assert map_question(row)["conversations"] == GOOD[:1]
    assert map_question({"text": "hi"})["conversations"] is None


def test_two_speakers_of_a_turn_are_neither():
    record = map_record({"messages": [turn | {"role": "user"} for turn in GOOD]})
    assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt/human"]


@pytest.mark.parametrize("value", [None, "text", 3, [None, "x"], [{"from": 1, "value": None}], {"from": "x"}])
def test_malformed_turns_are_passed_on_unchanged(value):
    assert map_record({"conversations": value})["conversations"] == value


def test_an_empty_answer_is_still_an_answer():
    assert record_shape({"prompt": "hi", "response": ""}) == ("prompt", "response")
    assert map_record({"prompt": "hi", "response": ""})["conversations"] == turns("hi", "")


def test_columns_that_parquet_fills_with_null_hide_nothing(tmp_path):
    """Rows of two forms in one table: each has the other's fields as nulls."""
    rows = [
        {"conversations": GOOD, "messages": None, "system": None},
        {"conversations": None, "messages": chat(("system", "s"), USER, ASSISTANT), "system": ""},
        {"conversations": chat(USER, ASSISTANT), "messages": [], "system": "s"},
        {
            "conversations": [chat(USER)[0], {"from": "gpt", "value": "yo", "weight": 1}],
            "messages": None,
            "system": None,
        },
    ]
    text = pa.string()
    turn = pa.struct([("from", text), ("value", text), ("role", text), ("content", text), ("weight", pa.int64())])
    schema = pa.schema([("conversations", pa.list_(turn)), ("messages", pa.list_(turn)), ("system", text)])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    (block,) = read_blocks(tmp_path / "a.parquet")
    records = [map_record(row.value) for row in block.rows()]
    assert [record["conversations"] for record in records] == [GOOD] * 4
    assert [record["system"] or None for record in records] == [None, "s", "s", None]
    assert json.loads(json.dumps(records)) == records
