"""The terminal side of a chat: drawing answers and reading lines."""

import contextlib
import sys
import time
import unicodedata
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from qwen3llada.sampling.decoding import Step
from qwen3llada.sampling.dialogue.text_model import END, MASK, TextModel

FRAME_SECONDS = 0.05  # on a GPU, drawing takes longer than a step


class View:
    """Draws the answer in place while it is denoised. Draws nothing if the output is no terminal."""

    def __init__(self, text: TextModel, start: int, console: Console) -> None:
        """`start`: number of prompt tokens, which are not shown."""
        self.text, self.start, self.drawn = text, start, 0.0
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def __call__(self, step: Step) -> None:
        now = time.monotonic()
        if not self.live.console.is_terminal or now - self.drawn < FRAME_SECONDS:
            return
        self.drawn = now
        self.live.update(self.frame(step), refresh=True)

    def frame(self, step: Step) -> Text:
        """The last lines of the answer that fit the window, and the number of the step below."""
        console = self.live.console
        lines = self.canvas(step, console.width).wrap(console, console.width)[2 - console.height :]
        return Text("\n").join([*lines, Text(f"step {step.index + 1}", style="dim")])

    def canvas(self, step: Step, masks: int) -> Text:
        """The current answer: masks and end tokens dim, newly committed tokens bold.

        Shows at most `masks` of the trailing masks; otherwise blocks not yet reached would fill the window.
        """
        tokens, new = step.canvas[0, self.start :].tolist(), step.committed[0, self.start :].tolist()
        pieces = self.text.pieces(tokens)
        known = max((number for number, piece in enumerate(pieces, start=1) if piece != MASK), default=0)
        line = Text()
        for piece, is_new in list(zip(pieces, new, strict=True))[: known + masks]:
            line.append(printable(piece), "dim" if piece in (MASK, END) else "bold green" if is_new else "")
        return line


def printable(text: str) -> str:
    """Replace control characters, which a terminal could take for commands."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def typed(console: Console) -> Iterator[str]:
    """Lines from the keyboard until Ctrl-D, with editing and history. Ctrl-C clears the line."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - `input` uses it once it is imported
    while True:
        try:
            line = input("> ")
        except KeyboardInterrupt:
            console.print(Text("\nCtrl-D or /quit leaves", style="dim"))
            continue
        except EOFError:
            console.print()
            return
        yield line


def piped(console: Console) -> Iterator[str]:
    """Lines of standard input, echoed as if typed."""
    for line in sys.stdin:
        console.print(Text(printable(f"> {line.rstrip()}")), soft_wrap=True)
        yield line
