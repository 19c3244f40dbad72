"""YAML and flags to a validated model: values, priorities, and one-line errors."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from qwen3llada.commandline import (
    ParamsError,
    merge,
    parse_environment,
    parse_flags,
    read_yaml,
    validated,
    with_default,
)
from qwen3llada.section import Section


class Noise(Section):
    schedule: Literal["uniform", "cosine"] = Field("uniform", description="corruption schedule")
    cap: float | None = Field(None, gt=0, description="bound of the weight; above 0")


Beta = Annotated[float, Field(ge=0, lt=1)]


class Part(Section):
    until: float = Field(1.0, gt=0, le=1, description="share of the run")
    name: str | None = Field(None, description="what it is called")


class Train(Section):
    lr: float = Field(1e-3, gt=0, le=10, description="learning rate; above 0")
    noise: Noise = Noise()
    compile: bool | None = Field(None, description="compile the body")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="decay rates")
    parts: tuple[Part, ...] = Field((), description="parts of the run")
    stages: tuple[dict[str, Any], ...] = Field((), description="other knobs in parts of the run")


class Request(Section):
    prompt: list[str] = Field([], description="a question; may be repeated")


def flags(instance: Section, *argv: str) -> dict:
    fields = {name: with_default(instance, name) for name in type(instance).model_fields}
    fields |= {name: (f.annotation, f) for name, f in Request.model_fields.items()}
    return parse_flags(fields, argv, doc="Trains.")


def from_environment(instance: Section) -> Train:
    fields = {name: with_default(instance, name) for name in type(instance).model_fields}
    return Train.model_validate(parse_environment(fields, "Q3LTEST_"))


def test_file_values_are_the_defaults_of_flags():
    train = Train(lr=0.5, noise=Noise(schedule="cosine", cap=2.0))
    assert flags(train)["noise"] == {"schedule": "cosine", "cap": 2.0}
    changed = flags(train, "--noise.schedule", "uniform")
    assert changed["noise"] == {"schedule": "uniform", "cap": 2.0}
    assert changed["lr"] == 0.5


def test_flag_beats_environment_beats_file(monkeypatch):
    monkeypatch.setitem(os.environ, "Q3LTEST_LR", "0.25")
    monkeypatch.setitem(os.environ, "Q3LTEST_NOISE__CAP", "3")
    train = from_environment(Train(lr=0.5))
    assert (train.lr, train.noise) == (0.25, Noise(cap=3.0))
    assert flags(train, "--lr", "0.125")["lr"] == 0.125
    assert flags(Train(lr=0.5))["lr"] == 0.5  # flags do not read environment variables


def test_a_wrong_value_in_the_environment_is_one_line(monkeypatch):
    monkeypatch.setitem(os.environ, "Q3LTEST_NOISE__CAP", "-1")
    with pytest.raises(
        ParamsError, match=r"environment: Q3LTEST_…: noise.cap: given '-1', .*greater than 0; allowed: above 0$"
    ):
        from_environment(Train())


def test_booleans_tuples_and_null():
    values = flags(Train(noise=Noise(cap=1.0)), "--compile", "--betas", "0.8,0.99", "--noise.cap", "null")
    assert (values["compile"], values["betas"], values["noise"]["cap"]) == (True, (0.8, 0.99), None)
    assert flags(Train(), "--no-compile")["compile"] is False


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--compile", "false"], False),
        (["--compile=false"], False),
        (["--compile", "true"], True),
        (["--compile"], True),
    ],
)
def test_switches_take_truth_values_too(argv, expected):
    assert flags(Train(), *argv)["compile"] is expected
    assert flags(Train(), *argv, "--noise.schedule", "cosine")["noise"]["schedule"] == "cosine"


@pytest.mark.parametrize("joined", [False, True])
def test_lists_of_objects_are_json(joined):
    parts = '[{"until": 0.5, "name": "a, b"}, {"until": 1, "name": null}]'
    stages = '[{"until": 0.5, "range": [0.1, 0.9], "on": false, "cap": null}]'
    given = [("--parts", parts), ("--stages", stages)]
    argv = [f"{flag}={value}" for flag, value in given] if joined else [part for pair in given for part in pair]
    values = flags(Train(), *argv, "--lr", "0.5")
    assert values["parts"] == ({"until": 0.5, "name": "a, b"}, {"until": 1.0, "name": None})
    assert values["stages"] == ({"until": 0.5, "range": [0.1, 0.9], "on": False, "cap": None},)
    assert values["lr"] == 0.5
    assert flags(Train(parts=(Part(until=0.5),)), "--parts", "[]")["parts"] == ()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.booleans())
def test_texts_in_lists_of_objects_are_taken_verbatim_or_refused(text, ascii_only):
    argv = ["--parts", json.dumps([{"name": text}, {"name": "b"}], ensure_ascii=ascii_only)]
    if any(character in '"\\' or ord(character) < 32 for character in text):
        with pytest.raises(ParamsError, match="must hold no quotes, backslashes or control characters"):
            flags(Train(), *argv)
    else:
        assert [part["name"] for part in flags(Train(), *argv)["parts"]] == [text, "b"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3))
def test_repeated_text_is_taken_verbatim(prompts):
    argv = [part for prompt in prompts for part in ("--prompt", prompt)]
    assert flags(Train(), *argv)["prompt"] == prompts
    assert flags(Train(), *(f"--prompt={prompt}" for prompt in prompts))["prompt"] == prompts


def test_of_many_flags_only_the_nearest_is_named(monkeypatch):
    monkeypatch.setattr("qwen3llada.commandline.messages.MOST_NAMED", 5)
    with pytest.raises(
        ParamsError, match=r"^command line: --lrr: unknown flag \(did you mean --lr\?\); --help lists"
    ) as error:
        flags(Train(), "--lrr", "1")
    assert len(str(error.value)) < 120


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--lrr", "1"], ["--lrr", "did you mean --lr?", "noise.schedule"]),
        (["--lr", "-1"], ["lr", "'-1'", "greater than 0"]),
        (["--lr", "fast"], ["lr", "'fast'", "number"]),
        (["--noise.schedule", "cubic"], ["noise.schedule", "'cubic'", "'uniform' or 'cosine'"]),
        (["--lr"], ["--lr", "expected one argument"]),
        (["--prompt"], ["--prompt", "expected one argument"]),
        (["stray"], ["stray", "unknown"]),
        (["--compile", "maybe"], ["--compile", "'maybe'", "true or false"]),
        (["--compile", "1"], ["--compile", "'1'", "true or false"]),
        (["--compile=1"], ["--compile", "'1'", "true or false"]),
        (["--compile", "-1"], ["--compile", "'-1'", "true or false"]),
        (["--lr", "inf"], ["lr", "'inf'", "finite", "allowed: above 0 to 10"]),
        (["--lr", "1e400"], ["lr", "'1e400'", "finite"]),
        (["--lr", "9" * 39], ["lr", "9" * 39, "less than or equal to 10"]),
        (["--lr", "9" * 5000], ["lr", "9… (5,002 characters)"]),
        (["--betas", "[nan,0.9]"], ["--betas", "'[nan,0.9]'", "numbers, each 0 to below 1"]),
        (["--betas=nan,0.9"], ["--betas", "'nan,0.9'", "numbers, each 0 to below 1"]),
        (["--betas", "0.9,1e400"], ["--betas", "'0.9,1e400'", "numbers"]),
        (["--betas", "[true,0.9]"], ["--betas", "'[true,0.9]'", "numbers"]),
        (["--betas", "-1,0.9"], ["betas.0", "given -1.0", "0 to below 1"]),
        (["--betas", "[0.8,1]"], ["betas.1", "given 1.0", "0 to below 1"]),
        (["--betas", "0.9"], ["betas.1", "missing"]),
        (["--betas"], ["--betas", "expected one argument"]),
        (["--parts", "0.9,1"], ["--parts", "'0.9,1'", "JSON list of objects"]),
        (["--parts", "[0.9]"], ["--parts", "'[0.9]'", "JSON list of objects"]),
        (["--stages", "{}"], ["--stages", "'{}'", "JSON list of objects"]),
        (["--stages=[{]"], ["--stages", "'[{]'", "JSON list of objects"]),
        (["--parts", "[" * 9999], ["--parts", "10,001", "JSON list of objects"]),
        (["--parts", '[{"until": 2}]'], ["parts.0.until", "given 2", "allowed: above 0 to 1"]),
        (["--parts", '[{"until": true}]'], ["parts.0.until", "given True", "must be a number"]),
        (["--parts"], ["--parts", "expected one argument"]),
    ],
)
def test_wrong_flags_say_what_is_allowed(argv, words):
    with pytest.raises(ParamsError) as caught:
        flags(Train(), *argv)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("command line: ")
    assert all(word in message for word in words), message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("COMPILE", "1", ["compile", "'1'", "true or false"]),
        ("LR", "9" * 39, ["lr", "9" * 39, "above 0 to 10"]),
        ("LR", "nan", ["lr", "'nan'", "finite"]),
        ("BETAS", "[nan,0.9]", ["Q3LTEST_BETAS", "[nan,0.9]", "[0.9, 0.95]"]),
        ("BETAS", "[0.9,2]", ["betas.1", "given 2", "0 to below 1"]),
    ],
)
def test_wrong_environment_variables_say_what_is_allowed(monkeypatch, name, value, words):
    monkeypatch.setitem(os.environ, f"Q3LTEST_{name}", value)
    with pytest.raises(ParamsError) as caught:
        from_environment(Train())
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"noise": {"shedule": "cosine"}}, ["noise.shedule", "unknown key", "did you mean schedule?"]),
        ({"noise": {"cap": 0}}, ["noise.cap", "given 0", "greater than 0"]),
        ({"lr": "1e-5x", "betas": 3}, ["lr", "and 1 more"]),
        ({"lr": float("nan")}, ["lr", "nan"]),
    ],
)
def test_wrong_files_name_file_key_given_allowed(tree, words):
    with pytest.raises(ParamsError) as caught:
        validated(Train, tree, "p.yaml")
    assert str(caught.value).startswith("p.yaml: ")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_yaml_is_1_2(tmp_path: Path):
    """`1e-05`, as `dvc exp run -S` writes it, is a number; `no` and `on` are words."""
    path = tmp_path / "p.yaml"
    path.write_text("lr: 1e-05\nword: no\n")
    assert read_yaml(path) == {"lr": 1e-05, "word": "no"}


@pytest.mark.parametrize(
    "text", ["a: [1", "- 1\n", "", "a: 1\na: 2\n", "a: " + "9" * 5000, "a: 2026-99-99", "[" * 1000], ids=range(7)
)
def test_broken_yaml_is_one_line(tmp_path: Path, text):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path):
    with pytest.raises(ParamsError, match="no such parameter file"):
        read_yaml(tmp_path / "none.yaml")


def test_merge_replaces_leaves_only():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merge(base, {"a": {"c": [3]}, "e": 2}) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": 2}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}
