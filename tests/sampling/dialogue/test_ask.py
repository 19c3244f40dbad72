"""Questions from the command line and from files, and what comes of them."""

import json
import os
import runpy
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from vocabulary import EOS

from qwen3llada.artifacts import read_jsonl, write_jsonl
from qwen3llada.corpus.conversations.records import Exchange
from qwen3llada.destinations import ANSWERS, PAGE, check_destinations
from qwen3llada.sampling.dialogue.ask import SampleRequest, answer_request, read_question, read_questions
from qwen3llada.sampling.dialogue.text_model import Answer
from qwen3llada.sampling.sampler import SampleParams, generate
from qwen3llada.sampling.trace.page import write_trace_page

ROOT = Path(__file__).parents[3]
PARAMS = SampleParams(steps=8, gen_length=8, block_length=4, batch_size=2)
PROMPTS = [[3, 5, 7], [1], [40, 41, 42, 43], [9, 6], [20, 22]]


@pytest.fixture
def run_stage(tmp_path, monkeypatch, capsys):
    """`python -m stages.sample`, in this process: (status, stdout, stderr)."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qwen3llada.sampling.lean_import.end_at_once", lambda: None)  # it would end pytest

    def call(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sample", *argv])
        with pytest.raises(SystemExit) as left:
            runpy.run_module("stages.sample", run_name="__main__", alter_sys=True)
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return call


def answers_of(text, prompts, seed=0):
    """The answer to each prompt alone, with its own number as the key."""
    rows = [
        generate(text.model, [p], PARAMS, seed=seed, row_keys=[i], eos_token_ids=(EOS,)) for i, p in enumerate(prompts)
    ]
    return [[token for token in row.tokens[0].tolist() if token != EOS] for row in rows]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_come_in_the_order_of_the_prompts_whatever_the_batch_size(text, batch_size, temperature):
    params = PARAMS.model_copy(update={"batch_size": batch_size, "temperature": temperature})
    answers = list(text.answers(PROMPTS, params, seed=3))
    assert [answer.prompt for answer in answers] == [" ".join(map(str, prompt)) for prompt in PROMPTS]
    assert [answer.prompt_tokens for answer in answers] == [len(prompt) for prompt in PROMPTS]
    for number, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        (alone,) = generate(text.model, [prompt], params, seed=3, row_keys=[number]).tokens
        assert answer.answer_tokens == len(alone)
        assert [int(word) for word in answer.answer.split()] == [token for token in alone.tolist() if token != EOS]


def test_a_file_of_prompts_to_a_file_of_answers(text, checkpoint, tmp_path):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "new/answers.jsonl"
    file.write_text("\n".join(json.dumps(" ".join(map(str, prompt))) for prompt in PROMPTS) + "\n\n")
    request = SampleRequest(prompts=file, out=out, trace=tmp_path / "page.html")
    answer_request(request, checkpoint, PARAMS, seed=0)
    rows = list(read_jsonl(out))
    assert [[int(word) for word in row["answer"].split()] for row in rows] == answers_of(text, PROMPTS)
    for row, prompt in zip(rows, PROMPTS, strict=True):
        assert set(row) == {
            *("prompt", "answer", "prompt_tokens", "answer_tokens", "forward_passes", "seconds", "backend")
        }
        assert row["prompt_tokens"] == len(prompt)
        assert 1 <= row["forward_passes"] <= 8
        assert row["seconds"] > 0
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count('class="answer"') == len(PROMPTS)


def test_one_answer_is_printed_alone_and_several_below_their_questions(text, checkpoint, capsys):
    answer_request(SampleRequest(prompt=["3 5 7"]), checkpoint, PARAMS, seed=0)
    printed = capsys.readouterr()
    (alone,) = answers_of(text, [[3, 5, 7]])
    assert printed.out == " ".join(map(str, alone)) + "\n"
    assert "forward passes" in printed.err
    answer_request(SampleRequest(prompt=["3 5 7", "1"], system="8 9"), checkpoint, PARAMS, seed=0)
    first, second = answers_of(text, [[8, 9, 3, 5, 7], [8, 9, 1]])
    expected = ["> 3 5 7", " ".join(map(str, first)), "> 1", " ".join(map(str, second))]
    assert capsys.readouterr().out.splitlines() == expected


def messages(*turns):
    """A conversation from turns such as "user What?"."""
    return {"messages": [dict(zip(("role", "content"), turn.split(" ", 1), strict=True)) for turn in turns]}


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ("What?", Exchange("What?", "", "S")),
        ({"prompt": "What?"}, Exchange("What?", "", "S")),
        ({"prompt": "What?", "system": "own"}, Exchange("What?", "", "own")),
        ({"prompt": "What?", "system": ""}, Exchange("What?", "", "")),
        ({"prompt": "What?", "response": "That."}, Exchange("What?", "", "S")),
        ({"question": "What?", "answer": "That."}, Exchange("What?", "That.", "S")),
        (
            {"messages": [{"role": r, "content": c} for r, c in (("user", "A"), ("assistant", "B"))]},
            Exchange("A", "B", "S"),
        ),
        (
            {
                "system": "own",
                "conversations": [
                    {"from": speaker, "value": value}
                    for speaker, value in (("human", "A"), ("gpt", "B"), ("human", "C"), ("gpt", "D"))
                ],
            },
            Exchange("C", "D", "own", (("A", "B"),)),
        ),
        (messages("user A", "assistant B", "user C"), Exchange("C", "", "S", (("A", "B"),))),
        (messages("user A"), Exchange("A", "", "S")),
        (messages("system own", "user A", "assistant B", "user C"), Exchange("C", "", "own", (("A", "B"),))),
        (messages("user A", "assistant B", "system Mind.", "user C"), Exchange("Mind.\nC", "", "S", (("A", "B"),))),
        (
            {"conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B", "train": False}]}
            | {"system": ""},
            Exchange("A", "", "S"),
        ),
        ({"question": "What?"}, Exchange("What?", "", "S")),
        ({"question": "What?", "system_prompt": "own"}, Exchange("What?", "", "own")),
        ({"instruction": "Add.", "input": "1 2"}, Exchange("Add.\n1 2", "", "S")),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, Exchange("Add.\n1 2", "", "S")),
        ({"instruction": "", "input": "1 + 2"}, Exchange("1 + 2", "", "S")),
        ({"prompt": "", "question": "What?", "answer": ""}, Exchange("What?", "", "S")),
        ({"query": "What?", "context": "This."}, Exchange("What?\nThis.", "", "S")),
        ({"question": "C", "history": [["A", "B"]]}, Exchange("C", "", "S", (("A", "B"),))),
        (
            {"prompt": "C", "history": messages("user A", "assistant B")["messages"]},
            Exchange("C", "", "S", (("A", "B"),)),
        ),
        ({"prompt": messages("user A", "assistant B", "user C")["messages"]}, Exchange("C", "", "S", (("A", "B"),))),
        ({"inputs": "What?", "targets": "That."}, Exchange("What?", "", "S")),
    ],
)
def test_every_form_of_a_question(row, question):
    asked, _ = read_question(row, "S")
    assert (asked.human, asked.system, asked.history) == (question.human, question.system, question.history)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3", "prompt 2: must be a text or an object, given int"),
        ('{"prompt": "a", "system": 3}', "prompt 2: system=3 must be text or absent"),
        ('{"text": "a"}', "prompt 2: a record must have conversations"),
        ('{"messages": []}', "prompt 2: a record must have at least one human→gpt pair"),
        (json.dumps(messages("assistant a")), "prompt 2: a record must have at least one"),
        (json.dumps(messages("user a", "user b")), r"take turns with gpt; its turns are \['human', 'human'\]"),
        (json.dumps(messages("assistant a", "user b")), r"human must begin .*\['gpt', 'human'\]"),
        (json.dumps(messages("user a", "assistant b", "tool c", "user d")), "take turns with gpt"),
        (
            '{"messages": [{"role": "user", "content": null}]}',
            "prompt 2: the value of a turn must be text, not NoneType",
        ),
        ('{"question": " "}', "prompt 2: the question is blank"),
        ('"  "', "prompt 2: the question is blank"),
        ('{"question": 3}', "prompt 2: the value of a turn must be text, not int"),
        ('{"question": "a", "history": "b"}', r"prompt 2: history must be a list of \[human, gpt\] pairs"),
        ('{"question": "a", "system_prompt": 3}', "prompt 2: system_prompt=3 must be text or absent"),
        ('{"question": "<image> What?", "image": "a.png"}', "prompt 2: it asks about an image"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, line, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'"fine"\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        list(read_questions(SampleRequest(prompts=file)))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_a_blank_prompt_is_refused_before_the_model_is_loaded(run_stage, prompt):
    status, out, error = run_stage("--model", "nothing", "--prompt", "a", "--prompt", prompt)
    assert (status, out, error) == (1, "", "error: prompt 2: the question is blank\n")


def test_fields_that_are_not_asked_are_named(tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    rows = [{"question": "a", "hint": "It is easy.", "id": 3}] * 2 + [
        {"prompt": "b", "response": "The answer is known."}
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert len(list(read_questions(SampleRequest(prompts=file)))) == 3
    assert capsys.readouterr().err == f"warning: {file}: fields that are not asked: hint (2)\n"


def test_settings_in_a_line_are_named(tmp_path, capsys):
    """They are no text, but who writes them expects an effect."""
    file = tmp_path / "prompts.jsonl"
    settings = {"temperature": 1.0, "steps": 0, "remasking": "random", "cache": None, "bf16": True, "max_tokens": 9}
    file.write_text(json.dumps({"prompt": "a", "response": 4, "id": 7, "score": 0.5} | settings), encoding="utf-8")
    assert len(list(read_questions(SampleRequest(prompts=file)))) == 1
    named = "temperature (1), steps (1), remasking (1), bf16 (1), max_tokens (1)"
    assert capsys.readouterr().err == f"warning: {file}: fields that are not asked: {named}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--prompt", "a", "--prompts", "b.jsonl"], ["prompt must not be combined with prompts"]),
        (["--interactive", "--prompt", "a"], ["interactive must not be combined"]),
        (["--interactive", "--out", "a"], ["interactive must not be combined"]),
        (["--interactive", "--trace", "a.html"], ["interactive must not be combined", "/trace"]),
        (["--out", "a"], ["out and trace need a prompt or prompts"]),
        (["--trace", "a.html"], ["out and trace need a prompt or prompts"]),
        (["--system", "a"], ["system needs a prompt, prompts or interactive"]),
        (["--prompt", "a", "--samples", "3"], ["--samples must be left out with --prompt: no effect there"]),
        (["--prompts", "a", "--extract=last_number"], ["--extract must be left out with --prompts: no effect there"]),
        (
            ["--interactive", "--samples", "5", "--batch_size", "3"],
            ["--samples, --batch_size must be left out with --interactive: no effect there"],
        ),
        (["--prompt", "a", "--gen_length", "0"], ["gen_length", "0"]),
        (["--prompt", "a", "--cfg_scale", "-1"], ["cfg_scale", "-1"]),
        (["--prompt", "a", "--remasking", "best"], ["remasking='best'"]),
        (["--prompt", "a", "--interactiv"], ["--interactiv: unknown flag (did you mean --interactive?)"]),
    ],
)
def test_flags_that_do_not_fit_are_one_line(run_stage, tmp_path, argv, words):
    status, out, error = run_stage(*argv)
    assert (status, out) == (2, "")
    assert len(error.splitlines()) == 1
    assert error.startswith("error: command line: ")
    assert all(word in error for word in words)
    assert os.listdir(tmp_path) == ["params.yaml"]


def test_flags_are_refused_only_where_they_have_no_effect(run_stage):
    """The value of --prompt is no flag, a parameter file may state every knob, and a batch may hold one prompt."""
    shutil.copy("params.yaml", "more.yaml")
    for argv in (
        ("--prompt", "--samples"),
        ("--prompt", "a", "--batch_size", "3"),
        ("--params", "more.yaml", "--prompt", "a"),
        ("--samples", "3", "--extract", "last_number"),
    ):
        status, _, error = run_stage("--model", "nothing", *argv)
        assert status == 1
        assert "no effect" not in error


def test_inputs_that_are_wrong_are_one_line(run_stage, checkpoint, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    before = sorted(os.listdir(tmp_path))
    for argv, words in (
        (("--model", "nothing", "--prompt", "1"), "nothing: no model"),
        (("--model", str(checkpoint), "--prompts", "missing.jsonl", "--out", "o"), "missing.jsonl"),
        (("--model", str(checkpoint), "--prompts", "empty.jsonl", "--out", "o"), "empty.jsonl: no prompts in it"),
        (("--model", str(checkpoint), "--prompt", "1", "--gen_length", "64", "--trace", "t"), "must not exceed"),
        (("--model", str(checkpoint), "--prompt", "1", "--steps", "3", "--out", "o"), "steps=3 must be at least"),
        (("--model", str(checkpoint), "--prompt", "1", "--parallel_blocks"), "needs attention policy block"),
    ):
        status, _, error = run_stage(*argv)
        errors = [line for line in error.splitlines() if line.startswith("error: ")]
        assert (status, len(errors)) == (1, 1)
        assert words in errors[0]
        assert sorted(os.listdir(tmp_path)) == before


def test_answers_and_pages_replace_only_answers_and_pages(run_stage, checkpoint, tmp_path):
    """Refused before the model is loaded, so the model's folder does not matter."""
    own = {
        "question.jsonl": '"1"\n',
        "notes.txt": "mine",
        "page.html": "<title>mine</title>",
        "rows.jsonl": '{"a": 1}\n',
    }
    for name, text in own.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "link").symlink_to("new")
    ask = ("--model", "nothing", "--prompts", "question.jsonl")
    for argv, words in (
        (("--out", "question.jsonl"), "out='question.jsonl' must not be the input prompts"),
        (("--trace", "question.jsonl"), "trace='question.jsonl' must not be the input prompts"),
        (("--out", "notes.txt"), "out='notes.txt' exists and does not hold answers"),
        (("--out", "rows.jsonl"), "out='rows.jsonl' exists and does not hold answers"),
        (("--out", "page.html"), "out='page.html' exists and does not hold answers"),
        (("--trace", "page.html"), "trace='page.html' exists and is no page of this stage"),
        (("--out", "x", "--trace", "x"), "out='x' must not be trace too"),
        (("--out", "link"), "out='link' must not be a link"),
        (("--out", "."), "out='.' must be a file"),
        (("--out", "/dev/null"), "out='/dev/null' must be a file"),
        (("--out", "notes.txt/a"), "notes.txt is none"),
    ):
        status, _, error = run_stage(*ask, *argv)
        assert status == 1
        assert words in error.splitlines()[-1]
    status, _, error = run_stage("--model", str(checkpoint), "--prompt", "1", "--out", str(checkpoint / "a"))
    assert "must not lie in the input model" in error
    assert {name: (tmp_path / name).read_text() for name in own} == own


def test_answers_and_pages_of_an_earlier_call_are_replaced(tmp_path):
    answer = Answer(
        prompt="1", answer="2", prompt_tokens=1, answer_tokens=1, forward_passes=1, seconds=0.5, backend="eager"
    )
    write_jsonl(tmp_path / "answers.jsonl", [asdict(answer)])
    write_trace_page(tmp_path / "page.html", [], {"model": "m"})
    writes = {"out": (tmp_path / "answers.jsonl", ANSWERS), "trace": (tmp_path / "page.html", PAGE)}
    check_destinations(writes, {})


def test_the_stage_chats(run_stage, checkpoint, monkeypatch, text):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("3 5 7\n/quit\n"))
    sizes = ("--steps", "8", "--gen_length", "8", "--block_length", "4")
    status, out, _ = run_stage("--model", str(checkpoint), "--interactive", "--system", "8 9", *sizes)
    (answer,) = answers_of(text, [[8, 9, 3, 5, 7]])
    assert (status, out.splitlines()[:2]) == (0, ["> 3 5 7", " ".join(map(str, answer))])
