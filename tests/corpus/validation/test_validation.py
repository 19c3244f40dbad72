"""The validation gate: what opens it, what closes it, and its messages."""

import json
import re

import numpy as np
import pytest
from pydantic import ValidationError

from qwen3llada.corpus.conversations.prompts import control_tokens
from qwen3llada.corpus.fetch.sources import ConversationData
from qwen3llada.corpus.tokens.bare_tokenizer import load_backend
from qwen3llada.corpus.tokens.mapped_tokens import load_tokens
from qwen3llada.corpus.tokens.tokenize import tokenize_conversations
from qwen3llada.corpus.validation import expectations as validation
from qwen3llada.corpus.validation.drift import drift
from qwen3llada.corpus.validation.gate import InvalidConversations, validate
from qwen3llada.corpus.validation.rules import Rule, Rules, ValidateParams


def pair(human, gpt, **more):
    return {"conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}], **more}


GOOD = [pair(f"Question {i}?", f"Answer {i}.") for i in range(20)]
HELDOUT = [pair("Held out?", "Yes."), pair("Also?", "Yes.")]
BLANK = pair("Nothing?", " ")
OPTIONAL = Rules.model_fields.keys() - {"readable", "structure", "unicode", "pairs"}


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "max_position_embeddings": 256}))
    return folder


@pytest.fixture
def gate(tmp_path, model):
    """A function that validates training records, one list per file, with reports in tmp_path.

    `only`: the rules besides those that must be there; a rule that a test does not ask about takes time.
    """

    def run(*files, heldout=HELDOUT, num_proc=1, rules=None, only=None, **knobs):
        for split, parts in (("train", files), ("heldout", [heldout])):
            folder = tmp_path / "raw" / split
            folder.mkdir(parents=True, exist_ok=True)
            for number, rows in enumerate(parts):
                (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        off = {name: {"severity": "off"} for name in OPTIONAL if only is not None and name not in only}
        params = ValidateParams(rules=off | (rules or {}), **knobs)
        arguments = (tmp_path / "raw", tmp_path / "validated", tmp_path / "reports")
        return validate(*arguments, model_folder=model, params=params, num_proc=num_proc)

    return run


def quarantined(tmp_path):
    return [json.loads(line) for line in (tmp_path / "reports/quarantine.jsonl").read_text().splitlines()]


def test_good_conversations_of_any_shape_pass(tmp_path, gate, tokenizer):
    roles = ("system", "user", "assistant")
    shapes = [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, "sab", strict=True)]},
        {"question": "c", "answer": "d", "id": 3},
    ]
    report = gate(GOOD, shapes)
    assert report["passed"]
    assert report["train"]["records"] == 22
    assert {rule["broken"] for rule in report["train"]["rules"].values()} == {0}
    lines = (tmp_path / "validated/train/conversations.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*GOOD, pair("a", "b", system="s"), pair("c", "d")]
    assert quarantined(tmp_path) == []
    assert json.loads((tmp_path / "reports/validation.json").read_text()) == report
    knobs = {"name": "x", "heldout_fraction": 0.1, "num_proc": 1}
    out = tmp_path / "tokens"
    manifest = tokenize_conversations(
        tmp_path / "validated/train", out, tokenizer, ConversationData(**knobs), max_length=64
    )
    assert manifest["samples"] == 22


def test_one_bad_record_closes_the_gate(tmp_path, gate):
    gate(GOOD, only=[])
    with pytest.raises(InvalidConversations) as caught:
        gate(GOOD[:7], [*GOOD[7:12], BLANK, *GOOD[12:]])
    message = str(caught.value)
    assert "\n" not in message
    assert "train: 1 of 21 records break not_blank" in message
    assert "First: train record 12 (1.jsonl), not_blank: 1 blank: Nothing? /  " in message
    assert ". validate.on_invalid=quarantine goes on without them. See " in message
    assert re.search(r"train 12 +not_blank: 1 blank +Nothing\? /", caught.value.table)
    assert not (tmp_path / "validated").exists()  # results of an earlier run are gone as well
    report = json.loads((tmp_path / "reports/validation.json").read_text())
    assert not report["passed"]
    assert report["train"]["rules"]["not_blank"]["broken"] == report["train"]["invalid"] == 1
    (entry,) = quarantined(tmp_path)
    assert (entry["index"], entry["file"], entry["index_in_file"]) == (12, "1.jsonl", 5)
    page = (tmp_path / "reports/validation/index.html").read_text()
    assert "not_blank" in page
    assert "Nothing?" in page
    assert re.search(r"not_blank</td>.*<td class=failed>failed", page)
    assert not re.search(r"https?://|<script|<link|<img", page)
    assert (tmp_path / "reports/validation/data_docs/index.html").is_file()
    links = re.findall(r"<a href='([^']+)'>(\w+)</a>", page)
    assert [name for _, name in links] == ["heldout", "train"]
    assert all((tmp_path / "reports/validation" / link).is_file() for link, _ in links)


@pytest.mark.usefixtures("without_docs")
def test_quarantine_is_not_proposed_where_it_would_not_help(gate):
    with pytest.raises(InvalidConversations, match="break not_blank") as caught:
        gate([*GOOD[:7], BLANK, BLANK], only=["not_blank"])
    assert "quarantine goes on" not in str(caught.value)


@pytest.mark.usefixtures("without_docs")
def test_bad_records_are_set_aside_up_to_a_share(tmp_path, gate):
    rows = [*GOOD[:18], BLANK, BLANK]
    knobs = {"on_invalid": "quarantine", "only": ["not_blank"]}
    report = gate(rows, max_invalid_fraction=0.1, **knobs)
    assert report["passed"]
    assert report["train"]["invalid"] == 2
    assert [entry["index"] for entry in quarantined(tmp_path)] == [18, 19]
    assert "2 invalid records are set aside" in (tmp_path / "reports/validation/index.html").read_text()
    problem = r"train: 2 of 20 records are invalid, more than max_invalid_fraction=0\.09 allows \(1 records\)\. "
    with pytest.raises(InvalidConversations, match=problem):
        gate(rows, max_invalid_fraction=0.09, **knobs)
    small = r"train: 2 of 20 .* allows \(0 records\); with 20 records in train one is too many: it is small"
    with pytest.raises(InvalidConversations, match=small):
        gate(rows, max_invalid_fraction=0.04, **knobs)
    assert not (tmp_path / "validated").exists()


@pytest.mark.usefixtures("without_docs")
def test_a_rule_tolerates_what_its_share_allows(tmp_path, gate):
    """A tolerated record does not make the rule fail, but is not trained on."""
    rows = [*GOOD[:18], BLANK, pair("Nothing at all?", "")]
    report = gate(rows, max_invalid_fraction=0.5, rules={"not_blank": {"mostly": 0.9}}, only=[])
    assert report["train"]["rules"]["not_blank"]["passed"]
    assert [entry["index"] for entry in quarantined(tmp_path)] == [18, 19]
    with pytest.raises(InvalidConversations, match="2 of 20 records break not_blank"):
        gate(rows, max_invalid_fraction=0.5, rules={"not_blank": {"mostly": 0.91}}, only=[])


def test_warnings_let_records_through(tmp_path, gate):
    rows = [*GOOD, GOOD[3], pair("Question 5?", "Another answer."), BLANK]
    report = gate(rows, rules={"not_blank": {"severity": "warning"}, "conflicts": {"severity": "off"}})
    assert report["warnings"] == ["train: 1 of 23 records break not_blank", "train: 1 of 23 records break duplicates"]
    assert "conflicts" not in report["train"]["rules"]
    page = (tmp_path / "reports/validation/index.html").read_text()
    assert "<p class=warning>train: 1 of 23 records break duplicates</p>" in page
    assert re.search(r"duplicates</td>.*<td class=warning>warning", page)
    assert "<td class=failed>" not in page
    assert len((tmp_path / "validated/train/conversations.jsonl").read_text().splitlines()) == 23


@pytest.mark.usefixtures("without_docs")
def test_fields_that_are_not_used_are_named_with_counts(tmp_path, gate):
    """For records of every shape. A field name with a comma is one name."""
    noted = [row | {"note": "Mind this one.", "id": "a b"} for row in GOOD[:3]]
    pairs = [{"question": f"Q {i}?", "answer": "A.", "hint": "It is easy.", "note": "x y"} for i in range(2)]
    files = [*noted, *GOOD[3:]], [*pairs, pair("z", "Z") | {"a, b": "two words"}]
    report = gate(*files, only=["unused_fields"])
    assert report["passed"]
    assert report["warnings"] == [r"train: 6 of 23 records break unused_fields: note (5), hint (2), a\x2c b (1)"]
    assert report["train"]["unused_fields"] == {"note": 5, "hint": 2, r"a\x2c b": 1}
    assert report["heldout"]["unused_fields"] == {}
    assert "not used: hint, note" in (tmp_path / "reports/validation/index.html").read_text()
    with pytest.raises(InvalidConversations, match=r"6 of 23 records break unused_fields: note \(5\), hint \(2\)"):
        gate(*files, rules={"unused_fields": {"severity": "error"}}, only=[])


@pytest.mark.usefixtures("without_docs")
def test_untaught_answers_media_and_null_filled_turns(tmp_path, gate, tokenizer):
    """Unusable records are rejected by their rule; history-only and null parts reach the right samples."""
    marked = pair("Is it 3?", "It is 4, wrong.")["conversations"]
    marked[1]["weight"] = 0
    nulls = [{"role": None, "content": None} | turn for turn in pair("Where?", "Here.")["conversations"]]
    rows = [
        {"conversations": [*marked, *pair("Sure?", "It is 3.")["conversations"]]},
        {"conversations": nulls},
        {"conversations": marked},
        {"conversations": [marked[0], marked[1] | {"weight": 0.5}]},
        {"image": "lamp.png"} | pair("<image>\nWhat is it?", "A lamp."),
    ]
    gate(GOOD, rows, on_invalid="quarantine", max_invalid_fraction=0.5)
    assert {entry["index"]: entry["reasons"] for entry in quarantined(tmp_path)} == {
        22: {"pairs": "its turns are: human gpt; 0 of its answers are taught"},
        23: {"structure": "weight, train or loss of turn 1 is '0.5', not true or false (1 or 0)"},
        24: {"media": "1 places of media that are not used"},
    }
    for turns in ("all", "first", "last"):
        data = ConversationData(name="x", heldout_fraction=0.1, num_proc=1, turns=turns)
        out = tmp_path / f"tokens-{turns}"
        tokenize_conversations(tmp_path / "validated/train", out, tokenizer, data, max_length=256)
        tokens = load_tokens(out)
        assert len(tokens) == 22
        texts = [
            (
                tokenizer.decode(s.tokens[: s.prompt_length].tolist()),
                tokenizer.decode(s.tokens[s.prompt_length : -1].tolist()),
            )
            for s in (tokens[20], tokens[21])
        ]
        assert texts == [("Is it 3?\nIt is 4, wrong.\nSure?\n", "It is 3."), ("Where?\n", "Here.")]


@pytest.mark.usefixtures("without_docs")
def test_records_that_differ_in_what_is_taught_are_not_equal_and_answers_of_history_do_not_conflict(gate):
    def row(answer, mark):
        turns = [*pair("How?", answer)["conversations"], *pair("Sure?", "Yes.")["conversations"]]
        turns[1] |= mark
        return {"conversations": turns}

    only = row("Otherwise.", {})
    only["conversations"][3] |= {"train": False}
    same = row("Wrong.", {"train": False}), row("Wrong.", {})
    rules = ["duplicates", "conflicts"]
    assert gate(GOOD, [*same, pair("How?", "Otherwise.")], only=rules)["warnings"] == []
    assert gate(GOOD, [only, pair("How?", "Rather.")], only=rules)["warnings"] == [
        "train: 1 of 22 records break conflicts"
    ]


@pytest.mark.usefixtures("without_docs")
def test_the_result_does_not_depend_on_blocks_or_processes(tmp_path, gate, monkeypatch):
    """A duplicate, a conflict and a leak are found across blocks and files, with record numbers in the split."""
    files = [*GOOD[:9], pair("held  OUT?", "x")], [GOOD[0], *GOOD[9:], pair("Question 4?", "no"), BLANK]
    severities = {name: Rule() for name in Rules.model_fields}
    knobs = {"on_invalid": "quarantine", "max_invalid_fraction": 0.9, "rules": severities}
    reports = []
    for size, processes in ((1 << 20, 1), (100, 1), (100, 2)):
        monkeypatch.setattr("qwen3llada.corpus.files.rows.BLOCK_BYTES", size)
        report = gate(*files, num_proc=processes, **knobs)
        reports.append((report, quarantined(tmp_path), (tmp_path / "reports/validation/profile.json").read_text()))
    assert reports[0] == reports[1] == reports[2]
    reasons = {entry["index"]: entry["reasons"] for entry in reports[0][1]}
    assert reasons == {
        9: {"leakage": "held-out record 0 asks the same"},
        10: {"duplicates": "equal to record 0"},
        22: {"conflicts": "same prompt as record 4, another answer"},
        23: {"not_blank": "1 blank"},
    }


ODD = [
    (json.dumps({"conversations": [{"from": "hu\ud800man", "value": "x"}]}), "roles", r"its turns are: hu\ud800man"),
    (json.dumps({"conversations": [{"from": "h\0 b", "value": "x"}]}), "roles", r"its turns are: h\x00_b"),
    (json.dumps({"di\ud800alogue": 1}), "structure", r"its columns are di\ud800alogue"),
    ('{"conversations": ' + "1" * 5000 + "}", "readable", "not readable JSON: Exceeds the limit (4300 digits)"),
    ('{"conversations": ' + "[" * 10**5, "readable", "not readable JSON: maximum recursion depth exceeded"),
]


def test_what_cannot_be_printed_or_read_is_still_a_record(tmp_path, gate):
    """The reason appears in every report: the page, the Data Docs and the quarantine."""
    (tmp_path / "raw/train").mkdir(parents=True)
    (tmp_path / "raw/train/1.jsonl").write_text("".join(line + "\n" for line, _, _ in ODD))
    report = gate(GOOD, on_invalid="quarantine", max_invalid_fraction=0.5)
    assert (report["train"]["records"], report["train"]["invalid"]) == (25, 5)
    for number, (entry, (line, rule, reason)) in enumerate(zip(quarantined(tmp_path), ODD, strict=True), start=20):
        assert (entry["index"], entry["raw"]) == (number, line)
        assert reason in entry["reasons"][rule]
    assert len((tmp_path / "validated/train/conversations.jsonl").read_text().splitlines()) == 20


def test_the_gate_counts_with_the_tokenizer_of_the_model(tmp_path, model, tokenizer):
    """The tokenizer is loaded without Transformers if possible, with the same result."""
    loaded, control = load_backend(model)
    assert loaded.to_str() == tokenizer.backend_tokenizer.to_str()
    assert (
        control == set(control_tokens(tokenizer)) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>", "<s>"}
    )
    settings = {
        "eos_token": {"content": "<end>"},
        "pad_token": None,
        "extra_special_tokens": ["<a>", {"content": "<b>"}],
    }
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_backend(tmp_path)[1] == control | {"<end>", "<a>", "<b>"}
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: no tokenizer that can be loaded"):
        load_backend(tmp_path)


@pytest.mark.usefixtures("without_docs")
def test_the_limit_in_tokens_is_the_models_unless_given(gate, tmp_path):
    fits, longer = pair("x" * 100, "y" * 156), pair("x" * 100, "y" * 157)  # one token per byte, 256 are allowed
    with pytest.raises(InvalidConversations, match=r"1 of 22 records break length.*length: 1 tokens above the limit"):
        gate([*GOOD, fits, longer], only=["length"])
    with pytest.raises(InvalidConversations, match="2 of 22 records break length"):
        gate([*GOOD, fits, longer], max_tokens=255, only=["length"])


@pytest.mark.usefixtures("without_docs")
def test_an_exception_in_an_expectation_is_neither_success_nor_bad_data(tmp_path, gate, monkeypatch):
    import great_expectations.expectations as gxe

    own = validation.expectations

    def broken(params):
        rules = own(params)
        rules["roles"] = gxe.ExpectColumnValuesToBeNull(column="no_such_fact", meta={"rule": "roles"})
        return rules

    monkeypatch.setattr(validation, "expectations", broken)
    with pytest.raises(ValueError, match=r"train: rule roles could not be evaluated: .*no_such_fact"):
        gate(GOOD, on_invalid="quarantine")
    report = json.loads((tmp_path / "reports/validation.json").read_text())
    assert not report["passed"]
    assert report["train"]["invalid"] == 0
    assert "no_such_fact" in report["train"]["rules"]["roles"]["error"]
    assert "not evaluated" in (tmp_path / "reports/validation/index.html").read_text()
    assert not (tmp_path / "validated").exists()


@pytest.mark.usefixtures("without_docs")
def test_drift_from_a_baseline_is_a_warning(tmp_path, gate):
    gate(GOOD, only=[])
    baseline = tmp_path / "baseline.json"
    baseline.write_bytes((tmp_path / "reports/validation/profile.json").read_bytes())
    report = gate(GOOD, baseline=str(baseline), only=[])
    assert set(report["drift"].values()) == {0}
    assert report["warnings"] == []
    other = [pair(f"Вопрос {i}? " * 5, f"Ответ {i}.") for i in range(20)]
    report = gate(other, baseline=str(baseline), only=[])
    assert report["passed"]
    assert report["drift"]["prompt_characters"] == 1.0
    assert report["drift"]["turns"] == 0.0
    assert report["drift"]["bytes"] > 0.5
    assert "drifted from the baseline: prompt_characters 1.000" in report["warnings"][0]
    baseline.write_text("{}")
    with pytest.raises(ValueError, match="a baseline must have prompt_characters"):
        gate(GOOD, baseline=str(baseline), only=[])


def test_divergence_is_that_of_jensen_and_shannon():
    from scipy.spatial.distance import jensenshannon

    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 9, 256), rng.integers(0, 9, 256)
    lengths = [[{"at_least": 1, "count": 3}, {"at_least": 2, "count": 1}], [{"at_least": 2, "count": 2}]]
    got = drift({"turns": lengths[0], "bytes": one.tolist()}, {"turns": lengths[1], "bytes": other.tolist()})
    assert got["bytes"] == pytest.approx(jensenshannon(one, other, base=2) ** 2)
    assert got["turns"] == pytest.approx(jensenshannon([3, 1], [0, 2], base=2) ** 2)


def test_rules_without_which_nothing_can_be_tokenized_stay_errors():
    with pytest.raises(ValidationError, match=r"rules\.pairs\.severity='warning' must be error"):
        ValidateParams(rules={"pairs": {"severity": "warning"}})
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        ValidateParams(rules={"roles": {"mostly": 1.1}})
