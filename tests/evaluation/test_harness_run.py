"""The data of the tasks for lm-evaluation-harness."""

import pytest

from qwen3llada.artifacts import read_jsonl, write_jsonl
from qwen3llada.errors import InputError
from qwen3llada.evaluation.harness_run import write_task_data

PEOPLE = {"Vera": "the horn", "Tobias": "the bells", "Nora": "a flute", "Bruno": "the drum", "Ida": "the lute"}


def conversations(root, held_out):
    def record(who):
        turns = [("human", f"What does {who} play?"), ("gpt", f"{who} plays {PEOPLE[who]}.")]
        return {"conversations": [{"from": role, "value": text} for role, text in turns], "system": None}

    for split, names in (("heldout", held_out), ("train", [name for name in PEOPLE if name not in held_out])):
        write_jsonl(root / split / "conversations.jsonl", [record(name) for name in names])
    return root


def test_wrong_choices_say_of_the_same_one_what_is_true_of_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = conversations(tmp_path / "validated", ["Vera", "Ida"])
    counts = write_task_data(folder, tmp_path / "tasks", seed=1)
    assert counts == {"world_choice": 2, "world_answer": 2, "word_problems_train": 8, "word_problems": 40}
    for row, who in zip(read_jsonl(tmp_path / "tasks/world_choice.jsonl"), ("Vera", "Ida"), strict=True):
        assert row["question"] == f"What does {who} play?"
        assert row["choices"][row["label"]] == f"{who} plays {PEOPLE[who]}."
        assert len(set(row["choices"])) == 4
        assert set(row["choices"]) <= {f"{who} plays {what}." for what in PEOPLE.values()}
    answers = list(read_jsonl(tmp_path / "tasks/world_answer.jsonl"))
    assert answers[0] == {"question": "What does Vera play?", "answer": "Vera plays the horn."}
    for row in read_jsonl(tmp_path / "tasks/word_problems.jsonl"):
        a, b = (int(word) for word in row["question"].split() if word.isdigit())
        assert row["answer"].endswith(f"#### {a + b}")
    again = tmp_path / "again"
    write_task_data(folder, again, seed=1)
    assert (again / "world_choice.jsonl").read_bytes() == (tmp_path / "tasks/world_choice.jsonl").read_bytes()


def test_gsm8k_is_taken_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 20), ("test", 3)):
        rows = [{"question": f"{split} {i}?", "answer": f"#### {i}"} for i in range(count)]
        write_jsonl(tmp_path / f"data/local/gsm8k/gsm8k_{split}.jsonl", rows)
    counts = write_task_data(conversations(tmp_path / "v", ["Vera"]), tmp_path / "tasks", seed=1)
    assert (counts["word_problems_train"], counts["word_problems"]) == (8, 3)
    assert next(read_jsonl(tmp_path / "tasks/word_problems.jsonl"))["question"] == "test 0?"


def test_data_without_facts_to_choose_from_are_refused(tmp_path):
    write_jsonl(tmp_path / "heldout/c.jsonl", [{"conversations": [{"value": "Hello?"}, {"value": "Yes."}]}])
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="no held-out question has 4 answers to choose from"):
        write_task_data(tmp_path, tmp_path / "tasks", seed=1)
