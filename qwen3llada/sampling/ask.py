"""Answers to prompts given on the command line or in a file."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from qwen3llada.artifacts import read_jsonl, write_jsonl
from qwen3llada.corpus.records import Exchange, exchanges, map_record
from qwen3llada.destinations import ANSWERS, PAGE, Kind, check_destinations
from qwen3llada.errors import InputError
from qwen3llada.sampling.params import SampleParams
from qwen3llada.sampling.text import Answer, TextModel, Trace
from qwen3llada.sampling.trace import write_trace_page
from qwen3llada.section import Section


class SampleRequest(Section):
    """What one call of the stage is asked; nothing given: the held-out prompts, for the reports."""

    model: Path | None = Field(None, description="Folder of the checkpoint; null: the fine-tuned one, sft.dst")
    prompt: list[str] = Field([], description="A question; may be repeated")
    prompts: Path | None = Field(
        None, description='File of JSON lines: "question", {"prompt": …, "system": …} or a record of a conversation'
    )
    system: str | None = Field(None, description="System prompt of each question given here")
    interactive: bool = Field(False, description="Chat in the terminal; /help there lists the commands")
    out: Path | None = Field(None, description="Write the answers there as JSON lines; null: print them")
    trace: Path | None = Field(None, description="Write a page (HTML) there that plays how the answers were denoised")

    @model_validator(mode="after")
    def _agree(self) -> "SampleRequest":
        asked = bool(self.prompt or self.prompts)
        if self.prompt and self.prompts:
            raise InputError("prompt must not be combined with prompts")
        if self.interactive and (asked or self.out or self.trace):
            raise InputError(
                "interactive must not be combined with prompt, prompts, out or trace (in the chat: /trace)"
            )
        if not asked and (self.out or self.trace):
            raise InputError("out and trace need a prompt or prompts")
        if not asked and not self.interactive and self.system is not None:
            raise InputError("system needs a prompt, prompts or interactive")
        return self


def answer_request(request: SampleRequest, model: Path, params: SampleParams, *, seed: int) -> None:
    """Answer the prompts of a request: print the answers or write them to `request.out`, and the page `request.trace`.

    Raises: ValueError in one line if a prompt or the model is missing or wrong.
    """
    check_request(request, model)
    asked = list(read_questions(request))
    if not asked:
        raise InputError(f"{request.prompts}: no prompts in it")
    text = TextModel.load(model, bf16=params.bf16)
    prompts = text.encode(asked)
    traces: list[Trace] = []
    on_trace = traces.append if request.trace else None
    answers = text.answers(prompts, params, seed=seed, progress=len(prompts) > params.batch_size, on_trace=on_trace)
    if request.out:
        write_jsonl(request.out, (asdict(answer) for answer in answers))
    else:
        print_answers(asked, answers)
    if request.trace:
        settings = {"model": model} | params.model_dump(exclude={"samples"}) | {"seed": seed}
        write_trace_page(request.trace, traces, settings)


def check_request(request: SampleRequest, model: Path) -> None:
    """Raises InputError if the answers or the page would be written where they must not be."""
    given: dict[str, tuple[Path | None, Kind]] = {"out": (request.out, ANSWERS), "trace": (request.trace, PAGE)}
    writes = {knob: (path, kind) for knob, (path, kind) in given.items() if path is not None}
    check_destinations(writes, {"model": model, "prompts": request.prompts})


def print_answers(asked: Sequence[Exchange], answers: Iterable[Answer]) -> None:
    """The answers on stdout, each below its question if there are several, and on stderr what each took."""
    for question, answer in zip(asked, answers, strict=True):
        if len(asked) > 1:
            print(f"> {question.human}", flush=True)
        print(answer.answer, flush=True)
        print(answer.effort, file=sys.stderr, flush=True)


def read_questions(request: SampleRequest) -> Iterator[Exchange]:
    """The questions of a request, in order. Raises ValueError naming the line of a file that holds none."""
    for prompt in request.prompt:
        yield Exchange(prompt, "", request.system)
    if request.prompts is None:
        return
    for number, row in enumerate(read_jsonl(request.prompts), start=1):
        try:
            yield as_question(row, request.system)
        except InputError as error:
            raise InputError(f"{request.prompts}: prompt {number}: {error}") from error


def as_question(row: Any, system: str | None) -> Exchange:
    """One prompt: a text, an object with `prompt`, or a record of a conversation, whose last question is asked."""
    if isinstance(row, str):
        return Exchange(row, "", system)
    if not isinstance(row, Mapping):
        raise InputError(f"must be a text or an object, given {type(row).__name__}")
    if isinstance(row.get("prompt"), str):
        own = row.get("system")
        if own is not None and not isinstance(own, str):
            raise InputError(f"system={own!r} must be text or absent")
        return Exchange(row["prompt"], "", own if own is not None else system)
    question = exchanges(map_record(row), "last")[0]
    return question if question.system else Exchange(question.human, "", system, question.history)
