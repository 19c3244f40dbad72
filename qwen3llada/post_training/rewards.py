"""Rewards of answers. To add one, write a function and enter it in `REWARDS`; or name a function of yours by path."""

import hashlib
import importlib
import importlib.util
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite, nan
from pathlib import Path
from types import ModuleType

from qwen3llada.errors import InputError
from qwen3llada.sampling.dialogue.extraction import result_of, same_result


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a reward sees of a rollout."""

    prompt: str
    answer: str  # without control tokens and surrounding white space
    reference: str  # the data's own answer
    tokens: int  # of the answer, including its EOS
    ended: bool  # whether it ended with EOS


class RewardError(InputError):
    """A reward failed. The one-line message names the reward, the reason, prompt and answer."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """score: (sample, argument) -> a number. argument: what must be given, as messages call it; None: nothing."""

    score: Callable[[Sample, str], float]
    argument: str | None = None
    check: Callable[[str], object] | None = None  # raises ValueError for an argument that cannot be


def exact_match(sample: Sample, argument: str) -> float:
    """1 if the answer is the reference, else 0."""
    return float(sample.answer == sample.reference)


def last_number(sample: Sample, argument: str) -> float:
    """1 if the last numbers of answer and reference are equal (GSM8K), else 0."""
    way = "last_number"
    return float(same_result(result_of(sample.answer, way), result_of(sample.reference, way), way))


def regex(sample: Sample, pattern: str) -> float:
    """1 if the pattern matches somewhere in the answer, else 0."""
    return float(re.search(pattern, sample.answer) is not None)


def length(sample: Sample, bounds: str) -> float:
    """1 if the answer has LOW to HIGH tokens, falling linearly to 0 at none, and at twice HIGH."""
    low, high = _bounds(bounds)
    if sample.tokens < low:
        return sample.tokens / low
    return 1.0 if sample.tokens <= high else max(0.0, 2 - sample.tokens / high)


def format_(sample: Sample, tags: str) -> float:
    """1 if the answer is nothing but <a>…</a> <b>…</b> …, for the tags a,b,… in this order, else 0."""
    names = [re.escape(name.strip()) for name in tags.split(",")]
    inside = r"(?:(?!</?(?:" + "|".join(names) + r")>).)*"  # no tag within a tag
    return float(re.fullmatch(r"\s*".join(f"<{n}>{inside}</{n}>" for n in names), sample.answer, re.DOTALL) is not None)


def _check_tags(tags: str) -> None:
    if not all(name.strip() for name in tags.split(",")):
        raise ValueError(f"{tags!r} must be tags with commas between them")


def _bounds(given: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", given)
    if match is None or not 0 <= int(match[1]) <= int(match[2]) or int(match[2]) < 1:
        raise ValueError(f"{given!r} must be LOW-HIGH with 0 <= LOW <= HIGH and HIGH >= 1")
    return int(match[1]), int(match[2])


REWARDS: dict[str, Reward] = {
    "exact_match": Reward(score=exact_match),
    "last_number": Reward(score=last_number),
    "regex": Reward(score=regex, argument="PATTERN", check=re.compile),
    "length": Reward(score=length, argument="LOW-HIGH", check=_bounds),
    "format": Reward(score=format_, argument="TAG,TAG,…", check=_check_tags),
}


def check_reward(name: str, argument: str) -> None:
    """Raises ValueError, naming what is allowed, unless a reward of that name takes that argument."""
    if ":" in name:
        if argument:
            raise ValueError(f"argument={argument!r} must be empty: a function of yours takes none")
        return
    if name not in REWARDS:
        raise ValueError(f"name={name!r} must be one of {', '.join(REWARDS)}, FILE.py:FUNCTION or MODULE:FUNCTION")
    reward = REWARDS[name]
    if bool(argument) != (reward.argument is not None):
        raise ValueError(f"argument={argument!r} of {name} must be {reward.argument or 'empty'}")
    if reward.check is not None:
        try:
            reward.check(argument)
        except (ValueError, re.error) as error:
            raise ValueError(f"argument of {name}: {error}") from error


@dataclass(frozen=True)
class WeightedReward:
    """A reward of the sum."""

    name: str
    argument: str
    weight: float
    label: str  # its name in curves and files


@dataclass(frozen=True)
class RewardSum:
    """Several rewards with weights."""

    parts: Sequence[WeightedReward]

    def check(self) -> None:
        """Raises InputError if a function given by path cannot be loaded, or has no source."""
        for part in self.parts:
            if ":" in part.name:
                own_function(part.name)
        self.digest()

    def digest(self) -> str:
        """Hash of the code that functions given by path come from. Raises InputError for a module without source."""
        digest = hashlib.sha256()
        for part in self.parts:
            if ":" in part.name:
                digest.update(_source(part.name))
        return digest.hexdigest()

    def __call__(self, sample: Sample) -> tuple[float, dict[str, float]]:
        """The weighted sum, and each reward by its label. Raises RewardError; nothing counts as 0 by failing."""
        scores = {part.label: _score(part, sample) for part in self.parts}
        return sum(part.weight * scores[part.label] for part in self.parts), scores


def _score(part: WeightedReward, sample: Sample) -> float:
    try:
        own = ":" in part.name
        value = own_function(part.name)(sample) if own else REWARDS[part.name].score(sample, part.argument)
        text = isinstance(value, str | bytes | bytearray)  # float() would read a number from it
        number = nan if text else float(value)
    except (Exception, SystemExit) as error:  # whatever a user's function raises
        _pass_on_a_signal(error)
        reason = f"{type(error).__name__}: {error}"
        raise RewardError(_failed(part, sample, reason)) from error
    if not isfinite(number):
        raise RewardError(_failed(part, sample, f"it gave {value!r:.80}, which is not a finite number"))
    return number


def _failed(part: WeightedReward, sample: Sample, reason: str) -> str:
    return f"reward {part.name} failed: {reason}; prompt {sample.prompt!r}, answer {sample.answer!r}"


def own_function(path: str) -> Callable[[Sample], float]:
    """The function at FILE.py:FUNCTION or MODULE:FUNCTION. Raises InputError in one line."""
    place, _, name = path.rpartition(":")
    if not place or not name:
        raise InputError(f"rewards: name={path!r} must be FILE.py:FUNCTION or MODULE:FUNCTION")
    function = getattr(_module(place), name, None)
    if not callable(function):
        raise InputError(f"rewards: {path}: {place} has no function {name!r}")
    return function


@cache
def _module(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as error:  # the file is a user's program, which may raise anything
        _pass_on_a_signal(error)
        raise InputError(f"rewards: {place} cannot be loaded: {type(error).__name__}: {error}") from error


def _pass_on_a_signal(error: BaseException) -> None:
    """Raise a SystemExit by which a stage answers SIGTERM or Ctrl-C. `sys.exit` of a user's program is another one."""
    if isinstance(error, SystemExit) and error.code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        raise error


def _source(path: str) -> bytes:
    """The file that a function given by path was loaded from. Raises InputError for what is not written in Python."""
    place = path.rpartition(":")[0]
    file = getattr(_module(place), "__file__", None)
    if not file or not file.endswith(".py"):
        raise InputError(
            f"rewards: {path}: {place} has no Python source, by which a checkpoint knows its rewards;"
            " call it from a function in a file of yours"
        )
    return Path(file).read_bytes()
