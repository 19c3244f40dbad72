"""The text of an answer while it is denoised, compared with that of the whole answer."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3llada.serving.progress import Progress

MASK, END = 256, 257
BYTES = SimpleNamespace(decode=lambda tokens, **_: bytes(t for t in tokens if t < MASK).decode(errors="replace"))


def sent(said, *, sizes=(1,), length=None, **options):
    """The pieces of text that are sent for an answer of these bytes, settled so many at a time, and its end."""
    answer, pieces, settled = [*said.encode(), END], [], 0
    answer = answer[:length]
    progress = Progress(BYTES, MASK, frozenset({END}), **options)
    while progress.finish is None:
        settled += sizes[len(pieces) % len(sizes)]
        canvas = [token if i < settled else MASK for i, token in enumerate(answer)]
        pieces.append(progress.update(canvas, [0.0] * len(answer)))
    assert "".join(pieces) == progress.text
    return pieces, progress.finish


@pytest.mark.parametrize("size", [1, 3, 99])
@pytest.mark.parametrize(("strips", "text"), [(True, "goat.\n yes"), (False, "\n goat.\n yes \n")])
def test_a_chat_alone_is_stripped(size, strips, text):
    pieces, finish = sent("\n goat.\n yes \n", sizes=(size,), strips=strips)
    assert ("".join(pieces), finish) == (text, "stop")


def test_white_space_that_is_not_stripped_is_sent_at_once():
    assert sent(" a b", strips=False)[0] == [" ", "a", " ", "b", ""]
    assert sent(" a b")[0] == ["", "a", "", " b", ""]


@pytest.mark.parametrize("size", [1, 3])
def test_a_stop_string_at_the_start_of_a_completion_ends_it(size):
    assert sent("\n goat", sizes=(size,), strips=False, stops=("\n",)) == ([""], "stop")
    assert "".join(sent("  goat", sizes=(size,), strips=False, stops=(" g",))[0]) == " "


def test_a_stop_string_with_a_character_of_two_bytes_is_held_back_from_its_beginning():
    assert "".join(sent("café x", stops=("fé",))[0]) == "ca"


def test_half_a_character_is_no_stop_string():
    assert sent("é x", stops=("\ufffd",)) == (["", "é", "", " x", ""], "stop")


def whole_text(said, sizes, length, stops, strips):
    """As `sent`, from the whole text after each step: nothing is held back, because nothing is sent before the end."""
    answer, settled, steps = [*said.encode(), END][:length], 0, 0
    while True:
        settled, steps = min(settled + sizes[steps % len(sizes)], len(answer)), steps + 1
        over = settled == len(answer)
        text = bytes(t for t in answer[:settled] if t < MASK).decode(errors="replace" if over else "ignore")
        text = text.lstrip() if strips else text
        if any(stop in text for stop in stops):
            return text[: min(text.find(stop) for stop in stops if stop in text)], "stop"
        if over:
            return text.rstrip() if strips else text, "stop" if answer[-1] == END else "length"


LETTERS = "a bé\n€😀"


@settings(deadline=None, max_examples=500)
@given(
    said=st.text(LETTERS, max_size=12),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    length=st.none() | st.integers(1, 30),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=3).map(tuple),
    strips=st.booleans(),
)
def test_what_is_sent_is_the_whole_text_up_to_a_stop_string(said, sizes, length, stops, strips):
    pieces, finish = sent(said, sizes=sizes, length=length, stops=stops, strips=strips)
    assert ("".join(pieces), finish) == whole_text(said, sizes, length, stops, strips)
