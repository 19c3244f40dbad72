"""Which part of an answer is its result, for comparison with a reference: all of it, a number, what a mark precedes.

To add a way, write a function and enter it in `EXTRACTIONS`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache

# A sign belongs to a number only where no digit or letter stands before it: "8-3" ends in 3, not in -3.
NUMBER = re.compile(r"(?:(?<![\w.])-)?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|(?:(?<![\w.])-)?\.\d+")


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """A way to find the result of an answer.

    find: (answer, argument) -> the result, or None where the answer has none.
    argument: what stands after the name and a colon, as it is called in messages; None: nothing does.
    """

    find: Callable[[str, str], str | None]
    argument: str | None = None
    check: Callable[[str], None] | None = None  # raises ValueError for an argument that cannot be


def whole(answer: str, argument: str) -> str | None:
    """The answer itself."""
    return answer


def last_number(answer: str, argument: str) -> str | None:
    """The last number, without the commas between its thousands."""
    found = NUMBER.findall(answer)
    return found[-1].replace(",", "") if found else None


def after(answer: str, mark: str) -> str | None:
    """The rest of the line after the last `mark`; GSM8K's solutions end in "#### 72"."""
    _, found, rest = answer.rpartition(mark)
    return (rest.splitlines() or [""])[0].strip() or None if found else None


def regex(answer: str, pattern: str) -> str | None:
    """The last match of a regular expression: its first group, or the whole where it has none."""
    matches = list(_compiled(pattern).finditer(answer))
    if not matches:
        return None
    last = matches[-1]
    return last[1 if last.re.groups else 0]


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _check_pattern(pattern: str) -> None:
    try:
        _compiled(pattern)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from error


EXTRACTIONS: dict[str, Extraction] = {
    "none": Extraction(find=whole),
    "last_number": Extraction(find=last_number),
    "after": Extraction(find=after, argument="TEXT"),
    "regex": Extraction(find=regex, argument="PATTERN", check=_check_pattern),
}


def checked(extract: str) -> str:
    """`extract` as it is. Raises ValueError, naming what is allowed, unless it is NAME or NAME:ARGUMENT."""
    name, colon, argument = extract.partition(":")
    way = EXTRACTIONS.get(name)
    if way is None or bool(argument) != (way.argument is not None) or (colon and not argument):
        allowed = ", ".join(n if w.argument is None else f"{n}:{w.argument}" for n, w in EXTRACTIONS.items())
        raise ValueError(f"extract={extract!r} must be one of {allowed}")
    if way.check is not None:
        way.check(argument)
    return extract


def result_of(answer: str, extract: str) -> str | None:
    """The result of an answer by a checked `extract`; None where it has none."""
    name, _, argument = extract.partition(":")
    return EXTRACTIONS[name].find(answer, argument)


def same_result(answer: str | None, reference: str | None, extract: str) -> bool:
    """Whether two results are equal: the same text or, unless whole answers are compared, the same number."""
    if answer is None or reference is None:
        return False
    if answer == reference or extract == "none":
        return answer == reference
    numbers = (_number(answer), _number(reference))
    return None not in numbers and numbers[0] == numbers[1]


def _number(text: str) -> Decimal | None:
    """The number that a text is, with or without commas and a currency sign: "$1,000.00" is 1000."""
    try:
        number = Decimal(re.sub(r"^([-+]?)[$€£]", r"\1", text.strip().rstrip(".")).replace(",", ""))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
