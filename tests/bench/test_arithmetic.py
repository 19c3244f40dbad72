"""Arithmetic questions: right answers, and no question in two files."""

from bench.arithmetic import COUNTS, write
from qwen3llada.artifacts import read_jsonl


def test_answers_are_right_and_no_question_comes_twice(tmp_path):
    write(tmp_path)
    seen, digits = set(), {"1": 0, "2": 0}
    for name, count in COUNTS.items():
        rows = [record["conversations"] for record in read_jsonl(tmp_path / f"{name}.jsonl")]
        assert len(rows) == count
        for human, gpt in rows:
            first, sign, second = human["value"].removeprefix("What is ").removesuffix("?").split()
            expected = int(first) + int(second) if sign == "+" else int(first) - int(second)
            assert gpt["value"] == str(expected)
            assert expected >= 0
            digits[str(len(first))] += 1
        seen |= {human["value"] for human, _ in rows}
    assert len(seen) == sum(COUNTS.values())
    assert min(digits.values()) > 100
