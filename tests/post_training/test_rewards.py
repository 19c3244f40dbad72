"""Rewards give what they say, and refuse what they cannot be."""

import pytest

from qwen3llada.errors import InputError
from qwen3llada.post_training.params import RewardParams, RlParams
from qwen3llada.post_training.rewards import REWARDS, RewardError, RewardSum, Sample, WeightedReward


def sample(answer, reference="", tokens=1):
    return Sample(prompt="?", answer=answer, reference=reference, tokens=tokens, ended=True)


def score(name, given, argument=""):
    return RewardSum([WeightedReward(name, argument, 1.0, name)])(given)[0]


def test_exact_match_and_last_number():
    assert score("exact_match", sample("Vera plays.", "Vera plays.")) == 1
    assert score("exact_match", sample("vera plays.", "Vera plays.")) == 0
    assert score("last_number", sample("3 + 4 = 1,000.0", "#### 1000")) == 1
    assert score("last_number", sample("no number", "#### 1000")) == 0
    assert score("last_number", sample("5", "none")) == 0


def test_regex_length_and_format():
    assert score("regex", sample("so it is 42!"), r"\d+!$") == 1
    assert score("regex", sample("so it is 42"), r"\d+!$") == 0
    lengths = {5: 0.5, 10: 1.0, 20: 1.0, 30: 0.5, 40: 0.0, 50: 0.0}
    assert {n: score("length", sample("", tokens=n), "10-20") for n in lengths} == lengths
    assert score("length", sample("", tokens=0), "0-4") == 1
    given = {"<a>x\n</a> <b>7</b>": 1, "<a>x</a>": 0, "<b>7</b><a>x</a>": 0, "<a><b>7</b></a><b>7</b>": 0, "x": 0}
    assert {text: score("format", sample(text), "a,b") for text in given} == given


def test_several_rewards_are_weighed_and_named():
    rewards = RewardSum(
        [WeightedReward("exact_match", "", 2.0, "exact_match"), WeightedReward("regex", "a", -0.5, "regex")]
    )
    assert rewards(sample("a", "a")) == (1.5, {"exact_match": 1.0, "regex": 1.0})


def test_a_function_is_named_by_file_or_module(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text("def size(sample):\n    return len(sample.answer)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for path in (f"{tmp_path}/own_rewards.py:size", "own_rewards:size"):
        RewardParams(name=path)
        assert score(path, sample("abc")) == 3
    rewards = RewardSum([WeightedReward(f"{tmp_path}/own_rewards.py:size", "", 1.0, "size")])
    assert rewards.digest() != RewardSum([]).digest()
    with pytest.raises(InputError, match=r"own_rewards\.py has no function 'other'"):
        RewardSum([WeightedReward(f"{tmp_path}/own_rewards.py:other", "", 1.0, "other")]).check()
    with pytest.raises(InputError, match="no_such_module cannot be loaded: ModuleNotFoundError"):
        RewardSum([WeightedReward("no_such_module:f", "", 1.0, "f")]).check()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("'1.0'", "it gave '1.0', which is not a finite number"),
        ("b'1.0'", "it gave b'1.0', which is not a finite number"),
        ("'x'", "it gave 'x', which is not a finite number"),
        ("float('nan')", "it gave nan, which is not a finite number"),
        ("1 / 0", "ZeroDivisionError"),
        ("None", "Type"),
        ("exit(0)", "SystemExit: 0"),
    ],
)
def test_what_is_no_number_is_an_error(tmp_path, body, reason):
    (tmp_path / "bad.py").write_text(f"def f(sample):\n    return {body}\n")
    with pytest.raises(RewardError, match=f"bad.py:f failed: .*{reason}.*prompt '\\?', answer 'abc'"):
        score(f"{tmp_path}/bad.py:f", sample("abc"))


@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        (b"raise SystemExit(0)", "bad.py:f", "bad.py cannot be loaded: SystemExit: 0"),
        (b"def f(:", "bad.py:f", "bad.py cannot be loaded: SyntaxError"),
        (b"", "builtins:len", "builtins:len: builtins has no Python source"),
        (b"", ":f", "name=':f' must be FILE.py:FUNCTION or MODULE:FUNCTION"),
        (b"", "bad.py:", "bad.py:' must be FILE.py:FUNCTION or MODULE:FUNCTION"),
    ],
)
def test_files_that_are_no_rewards_are_one_line(tmp_path, content, path, message):
    (tmp_path / "bad.py").write_bytes(content)
    named = f"{tmp_path}/{path}" if path.startswith("bad") else path
    with pytest.raises(InputError, match=message):
        RewardSum([WeightedReward(named, "", 1.0, "f")]).check()


def test_a_file_in_another_encoding_has_its_source(tmp_path):
    (tmp_path / "latin.py").write_bytes(b"# \xe9, coding: latin-1\ndef f(sample): return 1\n")
    rewards = RewardSum([WeightedReward(f"{tmp_path}/latin.py:f", "", 1.0, "f")])
    rewards.check()
    assert rewards.digest() != RewardSum([]).digest()


@pytest.mark.parametrize("status", [130, 143])
def test_a_signal_while_a_file_is_loaded_ends_the_stage(tmp_path, status):
    (tmp_path / "slow.py").write_text(f"raise SystemExit({status})")  # what the stage's handler of signals raises
    with pytest.raises(SystemExit, match=str(status)):
        RewardSum([WeightedReward(f"{tmp_path}/slow.py:f", "", 1.0, "f")]).check()


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["exact_match", "m:f"], ["exact_match", "f"]),
        (["m:f", "other:f"], ["f_1", "f_2"]),
        (["m:f", "m:f", "m:f_1"], ["f_1", "f_2", "f_1_3"]),
    ],
)
def test_every_reward_has_a_name_of_its_own(names, labels):
    params = RlParams.model_validate({"rewards": [{"name": name} for name in names]})
    assert [part.label for part in params.reward_sum.parts] == labels


def test_rewards_that_weigh_nothing_are_refused():
    with pytest.raises(ValueError, match="rewards: at least one weight must not be 0"):
        RlParams.model_validate({"rewards": [{"weight": 0}, {"name": "last_number", "weight": -0.0}]})
    RlParams.model_validate({"rewards": [{"weight": 0}, {"name": "last_number"}]})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "mine"}, "name='mine' must be one of exact_match, .*, FILE.py:FUNCTION or MODULE:FUNCTION"),
        ({"name": "regex"}, "argument='' of regex must be PATTERN"),
        ({"name": "regex", "argument": "("}, "argument of regex: "),
        ({"name": "exact_match", "argument": "x"}, "argument='x' of exact_match must be empty"),
        ({"name": "length", "argument": "9-3"}, "'9-3' must be LOW-HIGH"),
        ({"name": "format", "argument": "a,,b"}, "must be tags with commas"),
        ({"name": "m:f", "argument": "x"}, "must be empty: a function of yours takes none"),
    ],
)
def test_wrong_rewards_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        RewardParams.model_validate(given)


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_is_explained(name):
    assert REWARDS[name].score.__doc__
