"""A conversation in the terminal. Answers are shown while they are denoised."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.text import Text

from qwen3llada.commandline import validated
from qwen3llada.destinations import PAGE, check_destinations
from qwen3llada.errors import InputError
from qwen3llada.sampling.decoding import Step
from qwen3llada.sampling.dialogue.conversation import Conversation
from qwen3llada.sampling.dialogue.terminal import View, piped, printable, typed
from qwen3llada.sampling.dialogue.text_model import TextModel, Trace
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.trace.page import write_trace_page
from qwen3llada.sampling.trace.recording import TraceRecorder

HELP = {
    "/help": "this list",
    "/reset": "forget the conversation (also /clear)",
    "/system TEXT": "give the conversation another system prompt, or none, and begin anew",
    "/set KEY VALUE": "decode otherwise from now on: /set steps 64",
    "/settings": "how answers are decoded",
    "/trace FILE": "write a page that plays how the last answer was denoised",
    "/quit": "leave (also Ctrl-D); Ctrl-C stops an answer",
}


class ChatParams(DecodeParams):
    """Parameters that `/set` can change."""

    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the noise, 0 to below 2^63; the turn's number is mixed in"
    )


class Chat:
    """One conversation: its history and its decoding parameters."""

    def __init__(
        self, text: TextModel, name: str, params: ChatParams, *, system: str | None = None, console: Console
    ) -> None:
        """`name`: the model's name on pages that `/trace` writes."""
        self.text, self.name, self.params, self.console = text, name, params, console
        self.conversation = Conversation(text, params, system=system)
        self.last: Trace | None = None
        self.commands: dict[str, Callable[[str], None]] = {
            "help": self.help,
            "reset": self.reset,
            "clear": self.reset,
            "system": self.set_system,
            "set": self.set,
            "settings": self.settings,
            "trace": self.trace,
        }

    @property
    def history(self) -> list[tuple[str, str]]:
        """Questions and answers so far."""
        return self.conversation.history

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self.conversation.system

    def run(self, lines: Iterator[str]) -> None:
        """Answer lines until they end or one is /quit. An error in a line is reported in one line."""
        for line in lines:
            line = line.strip()
            if line.split(maxsplit=1)[:1] in (["/quit"], ["/exit"]):
                return
            try:
                self.take(line)
            except KeyboardInterrupt:
                self.say("stopped; the question is forgotten")
            except (InputError, OSError) as error:
                self.say(f"error: {' '.join(str(error).split())}", "red")

    def take(self, line: str) -> None:
        """Carry out a line: a command or a question. Raises: InputError or OSError in one line."""
        if not line.startswith("/"):
            if line:
                self.ask(line)
            return
        name, _, rest = line[1:].partition(" ")
        if name not in self.commands:
            raise InputError(f"/{name} is no command; /help lists them")
        self.commands[name](rest.strip())

    def ask(self, question: str) -> None:
        """Answer a question and append both to the history. An interrupted answer is not remembered."""
        self.conversation.params = DecodeParams(**self.params.model_dump(exclude={"seed"}))
        self.conversation.seed = self.params.seed
        prompt = self.conversation.prompt(question)
        recorder, view = TraceRecorder(), View(self.text, len(prompt), self.console)

        def see(step: Step) -> None:
            recorder(step)
            view(step)

        with view.live:
            answer = self.conversation.ask(question, on_step=see)
        (self.last,) = self.text.traces([answer], [prompt], recorder)
        self.console.print(Text(printable(answer.answer)))
        self.say(answer.effort)

    def help(self, rest: str) -> None:
        for command, meaning in HELP.items():
            self.say(f"{command:15} {meaning}")

    def reset(self, rest: str) -> None:
        self.conversation.reset()
        self.last = None
        self.say("the conversation is forgotten")

    def set_system(self, rest: str) -> None:
        self.conversation.system = rest or None
        self.reset("")

    def set(self, rest: str) -> None:
        """Raises: InputError naming the key, what was given and what is allowed."""
        key, _, value = rest.partition(" ")
        if not key or not value.strip():
            raise InputError("/set needs a key and a value; /settings lists them")
        given: str | None = None if value.strip() == "null" else value.strip()
        self.params = validated(ChatParams, self.params.model_dump() | {key: given}, "/set")
        self.say(f"{key}: {shown(getattr(self.params, key))}")

    def settings(self, rest: str) -> None:
        for key, value in {**self.params.model_dump(), "system": self.system}.items():
            self.say(f"{key:22} {shown(value)}")

    def trace(self, rest: str) -> None:
        """Raises: InputError without a file or before the first answer; OSError if the file cannot be written."""
        if not rest:
            raise InputError("/trace needs the name of a file to write")
        if self.last is None:
            raise InputError("/trace needs an answer; ask something first")
        path = Path(rest).expanduser()
        check_destinations({"/trace": (path, PAGE)}, {"model": self.name})
        write_trace_page(path, [self.last], {"model": self.name} | self.params.model_dump())
        self.say(f"wrote {path}")

    def say(self, line: str, style: str = "dim") -> None:
        self.console.print(Text(printable(line), style=style), soft_wrap=True)


def shown(value: Any) -> str:
    """A setting as it is written in YAML and in `/set`."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def chat(model: Path, params: DecodeParams, *, seed: int, system: str | None = None, bf16: bool = False) -> None:
    """Chat with the model in folder `model` until the input ends. Raises: InputError in one line if it is no model."""
    console = Console(highlight=False)
    text = TextModel.load(model, bf16=bf16)
    settings = ChatParams(**{name: getattr(params, name) for name in DecodeParams.model_fields}, seed=seed)
    conversation = Chat(text, str(model), settings, system=system, console=console)
    if sys.stdin.isatty():
        conversation.say(f"{model} on {text.model.device}; /help lists the commands")
        conversation.run(typed(console))
    else:
        conversation.run(piped(console))
