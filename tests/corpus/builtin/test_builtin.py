"""The built-in text and conversations: what they state and ask, and that held-out questions stay held out."""

import json
import re
from collections import defaultdict

import numpy as np
import pytest
from pydantic import ValidationError

from qwen3llada.corpus.builtin.grammar import Attribute, Entity, Kind
from qwen3llada.corpus.builtin.source import (
    BuiltinParams,
    builtin_conversations,
    builtin_documents,
    write_builtin_conversations,
    write_builtin_text,
)
from qwen3llada.corpus.builtin.tables import ANIMAL, CRAFT, PERSON, TOWN
from qwen3llada.corpus.builtin.wording import documents
from qwen3llada.corpus.builtin.world import hold_out

PARAMS = BuiltinParams(people=12, documents=3000, heldout_documents=300)


@pytest.fixture(scope="module")
def texts():
    return builtin_documents(PARAMS)


@pytest.fixture(scope="module")
def conversations():
    return builtin_conversations(PARAMS)


def exchanges(records):
    """(human, gpt) of every turn."""
    for record in records:
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        yield from zip((t["value"] for t in turns[::2]), (t["value"] for t in turns[1::2]), strict=True)


def kind_of_answer(answer):
    """The attribute of an answer, recognised by its verb."""
    verbs = {a.name: re.sub(r"\{\w+\}", "", a.answer).strip(" .") for a in PERSON + TOWN + CRAFT + ANIMAL}
    found = [name for name, verb in verbs.items() if all(f" {part}" in answer for part in verb.split("  "))]
    return max(found, key=lambda name: len(verbs[name]))


def test_files_hold_one_document_or_record_per_line(tmp_path, texts, conversations):
    write_builtin_text(tmp_path / "text", PARAMS)
    write_builtin_conversations(tmp_path / "conversations", PARAMS)
    for split, wanted in zip(("train", "heldout"), texts, strict=True):
        lines = (tmp_path / "text" / f"{split}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [{"text": text} for text in wanted]
    for split, records in zip(("train", "heldout"), conversations, strict=True):
        lines = (tmp_path / "conversations" / f"{split}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == records


def test_same_seed_same_world_other_seed_another(texts, conversations):
    assert builtin_documents(PARAMS) == texts
    assert builtin_conversations(PARAMS) == conversations
    other = PARAMS.model_copy(update={"seed": 1})
    assert builtin_documents(other) != texts
    answers = dict(exchanges(conversations[0]))
    others = dict(exchanges(builtin_conversations(other)[0]))
    common = answers.keys() & others.keys()
    assert any(answers[question] != others[question] for question in common)  # the facts differ, not only the order


def test_documents_are_distinct_across_the_splits(texts):
    train, heldout = texts
    assert len(train) == PARAMS.documents
    assert len(heldout) == PARAMS.heldout_documents
    assert len(set(train + heldout)) == len(train) + len(heldout)


def test_no_answer_of_the_heldout_split_is_in_any_turn_of_training(conversations):
    train, heldout = conversations
    trained = list(exchanges(train))
    held = list(exchanges(heldout))
    assert not {answer for _, answer in held} & {answer for _, answer in trained}
    assert not {question for question, _ in held} & {question for question, _ in trained}
    assert len({answer for _, answer in held}) == len(held) == len(heldout)  # each pair once, in one turn
    pairs = len({answer for _, answer in trained}) + len(held)
    assert pairs == 12 * len(PERSON) + 12 * (len(TOWN) + len(CRAFT) + len(ANIMAL))
    assert len(held) == pytest.approx(12 * len(PERSON) / PARAMS.heldout_one_in, rel=0.1)


def test_every_attribute_is_taught_and_every_one_of_people_held_out(conversations):
    train, heldout = ({kind_of_answer(answer) for _, answer in exchanges(records)} for records in conversations)
    assert train == {a.name for a in PERSON + TOWN + CRAFT + ANIMAL}
    assert heldout == {a.name for a in PERSON}


def test_text_tells_every_fact_and_asks_nothing(texts, conversations):
    train, heldout = texts
    told = "\n".join(train)
    assert "?" not in told + "".join(heldout)
    for records in conversations:
        for _, answer in exchanges(records):
            assert answer.removesuffix(".").lower() in told.lower(), answer


def test_a_question_has_one_answer_and_text_agrees_with_it(texts, conversations):
    answers = defaultdict(set)
    for records in conversations:
        for record in records:
            (human, gpt) = next(exchanges([record]))
            answers[human].add(gpt)
    assert all(len(found) == 1 for found in answers.values())
    homes = {a.split()[0]: a.split()[-1] for found in answers.values() for a in found if " lives in " in a}
    said = re.findall(r"(\w+)'s home is in (\w+\.)", " ".join(texts[0]))
    assert len(said) > len(homes) > 0
    assert all(homes[who] == where for who, where in said)


def test_pronouns_are_in_their_case(texts, conversations):
    words = " ".join(texts[0] + [turn["value"] for r in conversations[0] for turn in r["conversations"]])
    assert re.search(r"\b[Ss]he\b", words)
    assert re.search(r"\b(him|her)\b", words)
    assert not re.search(r"\b(to|in|of|past|for|from|give|visit|knows) (she|he)\b", words)
    assert not re.search(r"\b([Hh]im|[Tt]hem) (is|has|keeps|plays|lives|likes|works|looks|never)\b", words)
    assert not re.search(r"[{}]", words)


def test_shares_of_systems_and_of_dialogues():
    none = PARAMS.model_copy(update={"system_share": 0.0, "two_turns": 0})
    train, heldout = builtin_conversations(none)
    assert all("system" not in record and len(record["conversations"]) == 2 for record in train + heldout)
    both = PARAMS.model_copy(update={"system_share": 1.0, "two_turns": 2})
    many, heldout = builtin_conversations(both)
    assert all(record["system"] for record in many + heldout)
    dialogues = [record["conversations"] for record in many if len(record["conversations"]) == 4]
    assert len(dialogues) == len(many) - len(train) > 0
    assert all(turns[1]["value"] != turns[3]["value"] for turns in dialogues)


@pytest.mark.parametrize("one_in", [2, 3, 7])
def test_hold_out_leaves_every_entity_a_question(one_in):
    entities = tuple(Entity(name=f"e{i}", pronoun="", objective="", possessive="") for i in range(30))
    kind = Kind(name="kind", attributes=PERSON, entities=entities)
    held = hold_out((kind,), one_in, np.random.default_rng(0))
    assert len(held) == pytest.approx(30 * len(PERSON) / one_in, abs=len(PERSON))
    for entity in entities:
        assert sum((entity.name, a.name) not in held for a in PERSON) >= len(PERSON) // 2
    for attribute in PERSON:
        assert sum((e.name, attribute.name) in held for e in entities) == pytest.approx(30 / one_in, abs=1)


def test_a_world_too_small_for_its_documents_is_refused():
    attribute = Attribute(
        name="a", values=("v",), answer="{Who} has {v}.", statements=(), group="", questions=(), follow_up=""
    )
    entity = Entity(name="x", pronoun="it", objective="it", possessive="its", values={"a": "v"})
    kind = Kind(name="kind", attributes=(attribute,), entities=(entity,))
    with pytest.raises(ValueError, match=r"documents=50 is more than this world can tell"):
        documents((kind,), 50, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"people": 65}, "less than or equal to 64"),
        ({"people": 3}, "greater than or equal to 4"),
        ({"heldout_one_in": 1}, "greater than or equal to 2"),
        ({"heads": 3, "kv_heads": 2}, "heads=3 must be a multiple of kv_heads=2"),
        ({"poeple": 12}, "Extra inputs"),
    ],
)
def test_wrong_parameters_are_named(wrong, message):
    with pytest.raises(ValidationError, match=message):
        BuiltinParams(**wrong)
