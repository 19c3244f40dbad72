"""The chat: the history reaches the prompt, commands work, and errors do not end it."""

import io
import itertools
import signal

import pytest
from rich.console import Console
from vocabulary import EOS

from qwen3llada.sampling.dialogue import terminal as terminal_module
from qwen3llada.sampling.dialogue.chat import Chat, ChatParams
from qwen3llada.sampling.dialogue.terminal import piped, printable
from qwen3llada.sampling.sampler import SampleParams, generate

SIZES = {"steps": 8, "gen_length": 8, "block_length": 4}


def talk(text, *lines, terminal=False, system=None, **settings):
    """The chat after these lines, and what it printed."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=60, height=10, highlight=False, color_system=None)
    conversation = Chat(text, "a-model", ChatParams(**(SIZES | settings)), system=system, console=console)
    conversation.run(iter(lines))
    return conversation, output.getvalue()


def numbers(words: str) -> list[int]:
    return [int(word) for word in words.split()]


def expected(text, prompt, key, **settings):
    """The answer to a prompt of token ids (the words) with turn number `key`."""
    params = SampleParams(**(SIZES | {k: v for k, v in settings.items() if k != "seed"}))
    generation = generate(text.model, [prompt], params, seed=settings.get("seed", 0), row_keys=[key])
    return [token for token in generation.tokens[0].tolist() if token != EOS]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 7}])
def test_what_was_said_is_part_of_the_next_prompt(text, settings):
    chat, printed = talk(text, "3 5 7", "", "9 2", system="40 41", **settings)
    (first, answer), (second, last) = chat.history
    assert (first, second) == ("3 5 7", "9 2")
    assert numbers(answer) == expected(text, [40, 41, 3, 5, 7], 0, **settings)
    assert numbers(last) == expected(text, [40, 41, 3, 5, 7, *numbers(answer), 9, 2], 1, **settings)
    lines = printed.splitlines()
    assert [lines[0], lines[2]] == [answer, last]
    assert "forward passes" in lines[1]


@pytest.mark.parametrize("command", ["/reset", "/clear", "/system"])
def test_a_conversation_begins_anew(text, command):
    chat, _ = talk(text, "1 2 3", command, "3 5 7")
    assert [question for question, _ in chat.history] == ["3 5 7"]
    assert numbers(chat.history[0][1]) == expected(text, [3, 5, 7], 0)


def test_the_system_prompt_can_be_changed(text):
    chat, _ = talk(text, "1", "/system  8 9 ", "3 5 7")
    assert numbers(chat.history[0][1]) == expected(text, [8, 9, 3, 5, 7], 0)
    chat, _ = talk(text, "/system", "3 5 7", system="8 9")
    assert chat.system is None


def test_settings_can_be_changed_and_are_shown(text):
    chat, printed = talk(
        text, "/set steps 4", "/set block_length null", "/set temperature 0.5", "/set parallel_blocks true", "/settings"
    )
    assert chat.params == ChatParams(gen_length=8, steps=4, temperature=0.5, parallel_blocks=True)
    table = dict(line.split() for line in printed.splitlines()[4:])
    assert table["steps"] == "4"
    assert table["block_length"] == table["system"] == "null"
    assert table["parallel_blocks"] == "true"
    assert set(table) == {*ChatParams.model_fields, "system"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/set steps 0", ["steps", "0", "greater than or equal to 1"]),
        ("/set steps many", ["steps", "'many'", "integer"]),
        ("/set stepz 3", ["stepz", "unknown key", "did you mean steps?"]),
        ("/set bf16 true", ["bf16", "unknown key"]),
        ("/set remasking best", ["remasking='best'", "low_confidence"]),
        ("/set block_attention perhaps", ["block_attention", "'perhaps'"]),
        ("/set steps", ["/set needs a key and a value"]),
        ("/set", ["/set needs a key and a value"]),
        ("/trace", ["/trace needs the name of a file"]),
        ("/trace page.html", ["/trace needs an answer"]),
        ("/nonsense 1 2", ["/nonsense is no command", "/help"]),
        (" ".join(["1"] * 60), ["must not exceed", "max_position_embeddings=64"]),
    ],
)
def test_what_is_wrong_is_one_line_and_changes_nothing(text, line, words):
    chat, printed = talk(text, line, "3 5 7")
    error, answer = printed.splitlines()[:2]
    assert error.startswith("error: ")
    assert all(word in error for word in words)
    assert numbers(answer) == expected(text, [3, 5, 7], 0)
    assert chat.params == ChatParams(**SIZES)


def test_settings_that_do_not_fit_together_are_told_when_asked(text):
    chat, printed = talk(text, "/set steps 1", "3 5 7", "/set steps 8", "3 5 7")
    assert "error: steps=1 must be at least the number of blocks to decode, 2" in printed
    assert numbers(chat.history[0][1]) == expected(text, [3, 5, 7], 0)


def test_the_last_answer_can_be_traced(text, tmp_path):
    chat, printed = talk(text, "1 2", "3 5 7", f"/trace {tmp_path}/a page.html")
    html = (tmp_path / "a page.html").read_text(encoding="utf-8")
    assert f"wrote {tmp_path}/a page.html" in printed.replace("\n", "")
    assert f"1 2\n{chat.history[0][1]}\n3 5 7".replace("\n", " ") in html
    assert "a-model" in html
    blocked = tmp_path / "file"
    blocked.write_text("")
    _, printed = talk(text, "3 5 7", f"/trace {blocked}/page.html", "3 5 7")
    assert "error: " in printed
    assert printed.count("forward passes") == 2


def test_a_trace_does_not_replace_what_is_no_trace(text, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    _, printed = talk(text, "1", f"/trace {tmp_path}/page.html")
    assert "exists and is no page of this stage" in " ".join(printed.split())
    assert (tmp_path / "page.html").read_text() == "mine"


def test_every_command_is_in_the_help(text):
    chat, printed = talk(text, "/help")
    for name in (*chat.commands, "quit"):
        assert f"/{name}" in printed


@pytest.mark.parametrize("leave", ["/quit", "/exit", " /quit now"])
def test_quit_ends_it(text, leave):
    lines = iter(["3 5 7", leave, "1 2 3"])
    chat, _ = talk(text, *itertools.islice(lines, 2), "never asked")
    assert len(chat.history) == 1


@pytest.fixture
def interruptible():
    """As in a terminal: a process that a shell starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_stops_the_answer_and_not_the_chat(text):
    passes = itertools.count(1)

    def interrupt(*_):
        if next(passes) == 3:
            signal.raise_signal(signal.SIGINT)

    hook = text.model.register_forward_pre_hook(interrupt)
    inner = text.model.model.register_forward_pre_hook(interrupt)
    try:
        chat, printed = talk(text, "3 5 7", "1 2 3", terminal=True)
    finally:
        hook.remove()
        inner.remove()
    assert "stopped" in printed
    assert [question for question, _ in chat.history] == ["1 2 3"]
    assert numbers(chat.history[0][1]) == expected(text, [1, 2, 3], 0)


def test_the_answer_is_drawn_while_it_is_denoised(text, monkeypatch):
    monkeypatch.setattr(terminal_module, "FRAME_SECONDS", 0.0)
    _, printed = talk(text, "3 5 7", terminal=True)
    masks = [frame.count("▒") for frame in printed.split("step ")[:-1]]
    assert masks == [7, 6, 5, 4, 3, 2, 1, 0, 0]  # the last frame is drawn again before it is cleared
    _, quiet = talk(text, "3 5 7")
    assert "▒" not in quiet
    assert "\x1b" not in quiet


def test_a_frame_fits_the_window(text, monkeypatch):
    monkeypatch.setattr(terminal_module, "FRAME_SECONDS", 0.0)
    heights = []
    original = terminal_module.View.frame

    def measured(view, step):
        view.live.console.size = (5, 6)
        frame = original(view, step)
        heights.append(len(frame.wrap(view.live.console, 5)))
        return frame

    monkeypatch.setattr(terminal_module.View, "frame", measured)
    talk(text, "3 5 7", terminal=True, gen_length=40, steps=40)
    assert len(heights) >= 4
    assert max(heights) <= 6


def test_lines_from_a_pipe(text, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("3 5 7\n/set steps 4\n1 2 3"))
    output = io.StringIO()
    console = Console(file=output, width=60)
    chat = Chat(text, "a-model", ChatParams(**SIZES), console=console)
    chat.run(piped(console))
    assert [question for question, _ in chat.history] == ["3 5 7", "1 2 3"]
    assert [line for line in output.getvalue().splitlines() if line.startswith(">")] == [
        "> 3 5 7",
        "> /set steps 4",
        "> 1 2 3",
    ]


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\x9bc\td\ne é 日\u200d") == "a\ufffd[2Jb\ufffdc\td\ne é 日\u200d"
