"""The text of an answer while it is denoised, compared with that of the whole answer."""

from types import SimpleNamespace

import pytest

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
