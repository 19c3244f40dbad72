"""Finds exactly the parts of a row that are in no text of its record."""

import pytest

from qwen3llada.corpus.builtin.params import BuiltinParams
from qwen3llada.corpus.builtin.source import builtin_conversations
from qwen3llada.corpus.conversations.records import map_record
from qwen3llada.corpus.conversations.unused_fields import Lost, find_lost

NOTHING = Lost((), 0)
PAIR = {"question": "Which is it?", "answer": "The first."}


def lost(row):
    return find_lost(row, map_record(row))


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        PAIR | {"system_prompt": "Be brief.", "context": "There are two.", "history": [["Is it on?", "It is on."]]},
        PAIR | {"choices": ["the first one", "the second one"], "reasoning_content": "It comes first."},
        {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "a b"}]},
        # information about the row
        PAIR
        | {"id": "a 1", "category": "closed qa", "source": "The Free Encyclopedia", "task_name": "x y", "url": "a b"},
        PAIR | {"meta": {"note": "two words"}, "hash": "d41d8cd9", "date": "1 May 2020", "prompt_id": "x y"},
        # a label, a number, no content
        PAIR
        | {"verdict": "correct", "turn": 3, "fine": True, "hint": None, "notes": "", "steps": [], "more": {"a": " "}},
        # the same text again, and the whole conversation rendered
        PAIR | {"original": "Which is it?", "text": "### Question:\nWhich is it?\n### Answer:\nThe first."},
    ],
)
def test_what_is_used_or_about_the_row_is_not_missed(row):
    assert lost(row) == NOTHING


def test_a_short_conversation_is_not_found_inside_of_words():
    assert lost({"prompt": "a", "response": "t", "hint": "Had it been easy, late or not."}).fields == ("hint",)


@pytest.mark.parametrize(
    ("more", "fields"),
    [
        ({"hint": "It comes first."}, ("hint",)),
        ({"hint": "Первая."}, ("hint",)),
        (
            {"steps": ["Look there.", "Take it."], "other": {"deep": [{"note": "two words"}]}},
            ("steps", "other.deep.note"),
        ),
        ({"context": {"title": ["One"], "sentences": [["A sentence."]]}}, ("context.title", "context.sentences")),
        ({"choices": {"first": "one", "second": "two"}}, ("choices.first", "choices.second")),
        ({"system": "Terse.", "system_prompt": "Kind."}, ("system_prompt",)),
        ({"text": "The first. Which is it?"}, ("text",)),  # another order, so not the conversation
        ({"response": "Second."}, ("response",)),
        ({"tools": [{"name": "search"}]}, ("tools",)),
        ({"image": "lamp.png"}, ("image",)),
        ({"images": [{"bytes": b"x", "path": None}], "video": None}, ("images",)),
        ({"a,b\n": "two words"}, (r"a\x2cb\n",)),
    ],
)
def test_fields_with_text_of_no_use_are_named(more, fields):
    assert lost(PAIR | more) == Lost(fields, 0)


def test_fields_of_turns_are_named():
    turns = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c", "note": "two words"}]
    turns[1] |= {"value": "d", "tool_calls": [{"name": "f"}], "name": "Ann"}
    assert lost({"messages": turns}).fields == ("messages.content", "messages.note", "messages.tool_calls")


@pytest.mark.parametrize(
    ("human", "more", "media"),
    [
        ("<image>\nWhat is it?", {"image": "lamp.png"}, 1),
        ("Compare <image_1> with <image 2>.", {"images": [b"x", b"y"]}, 2),
        ("What does <|audio_bos|><|audio|> say?", {"audio": {"path": "a.wav"}}, 2),
        ("<image>\nWhat is it?", {}, 1),  # the column was left out
        ("What is it?\n<video>", {"video": None}, 1),
        ("What is it?", {"image": "lamp.png"}, 0),
        ("<video>\n<source src=a>\n</video>\nWhy does my page stay empty?", {}, 0),
        ("What does <video> do in HTML?", {}, 0),
        ([{"type": "image"}, {"type": "text", "text": "What is it?"}], {}, 1),
        ([{"type": "text", "text": "What is it?"}, {"type": "input_audio", "input_audio": {"data": "x"}}], {}, 1),
    ],
)
def test_places_of_media_that_are_dropped_are_counted(human, more, media):
    row = {"messages": [{"role": "user", "content": human}, {"role": "assistant", "content": "A lamp."}]} | more
    assert lost(row).media == media


def test_the_built_in_world_loses_nothing():
    for records in builtin_conversations(BuiltinParams(people=8)):
        assert {lost(record) for record in records} == {NOTHING}
