"""Results of answers, by hand."""

import pytest
from pydantic import ValidationError

from qwen3llada.sampling.dialogue.extraction import EXTRACTIONS, Extraction, result_of, same_result
from qwen3llada.sampling.params import SampleParams

SOLUTION = "She sold 48/2 = 24 in May.\nIn all 48+24 = 72 clips, for $1,234.50.\n#### 72"


@pytest.mark.parametrize(
    ("extract", "answer", "result"),
    [
        ("none", " as it is ", " as it is "),
        ("last_number", SOLUTION, "72"),
        ("last_number", "it is 1,234,567.", "1234567"),
        ("last_number", "at -3.50 degrees", "-3.50"),
        ("last_number", "8-3", "3"),
        ("last_number", "pages 12,34", "34"),
        ("last_number", "-.5", "-.5"),
        ("last_number", "none at all", None),
        ("after:####", SOLUTION, "72"),
        ("after:####", "#### 1\n#### 2 \nso", "2"),
        ("after:the answer is", "the answer is: 4", ": 4"),
        ("after:####", "no mark", None),
        ("after:####", "cut off ####", None),
        ("regex:(\\d+) = (\\d+)", SOLUTION, "24"),
        ("regex:[A-Z]\\w+", SOLUTION, "In"),
        ("regex:a:b", "a:b", "a:b"),
        ("regex:x(y)?", "x", None),
        ("regex:z", SOLUTION, None),
    ],
)
def test_the_result_of_an_answer(extract, answer, result):
    assert SampleParams(extract=extract).extract == extract
    assert result_of(answer, extract) == result


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [("72", "72.00", True), ("$1,000", "1000", True), ("-$5", "-5.0", True), ("72.", "72", True), ("7", "72", False),
     ("Ashby", "Ashby", True), ("ashby", "Ashby", False), (None, "72", False), (None, None, False),
     ("inf", "Infinity", False)],
)  # fmt: skip
def test_numbers_are_compared_as_numbers(answer, reference, same):
    assert same_result(answer, reference, "after:####") is same
    assert same_result(answer, reference, "none") is (answer is not None and answer == reference)


@pytest.mark.parametrize("extract", ["", "number", "none:x", "last_number:", "after", "after:", "regex:", "Regex:x"])
def test_what_is_no_way_to_extract_is_refused_with_those_that_are(extract):
    with pytest.raises(ValidationError, match="must be one of none, last_number, after:TEXT, regex:PATTERN"):
        SampleParams(extract=extract)


def test_a_pattern_that_does_not_compile_is_refused():
    with pytest.raises(ValidationError, match=r"the pattern '\(' is no regular expression: missing \)"):
        SampleParams(extract="regex:(")


def test_a_new_entry_is_accepted(monkeypatch):
    monkeypatch.setitem(EXTRACTIONS, "first", Extraction(find=lambda answer, argument: answer.split()[0]))
    assert result_of("Vera plays", SampleParams(extract="first").extract) == "Vera"
