"""Answers to prompts given on the command line or in a file."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3llada.artifacts import read_jsonl, write_jsonl
from qwen3llada.corpus.conversations.fields import ANSWERS as ANSWER_FIELDS
from qwen3llada.corpus.conversations.fields import GPT, HISTORY, HUMAN, SHAPES_IN_WORDS, SYSTEM_FIELDS, filled
from qwen3llada.corpus.conversations.mapping import history_turns, map_question
from qwen3llada.corpus.conversations.records import Exchange, role_of, turn_text
from qwen3llada.corpus.conversations.unused_fields import Lost, find_lost, unused_settings
from qwen3llada.destinations import ANSWERS, PAGE, Kind, check_destinations
from qwen3llada.errors import InputError
from qwen3llada.sampling.lean_import import import_model_code
from qwen3llada.sampling.params import SampleParams, SampleRequest

if TYPE_CHECKING:  # torch takes seconds to import; errors in a request are reported before that
    from qwen3llada.sampling.dialogue.text_model import Answer, Trace

BLANK = "the question is blank"


def answer_request(request: SampleRequest, model: Path, params: SampleParams, *, seed: int) -> None:
    """Answer a request's prompts: print the answers or write them to `request.out`; write the page `request.trace`.

    Raises: InputError in one line if a prompt or the model is missing or wrong.
    """
    check_request(request, model)
    asked = list(read_questions(request))
    if not asked:
        raise InputError(f"{request.prompts}: no prompts in it")
    import_model_code()
    from qwen3llada.sampling.dialogue.text_model import TextModel
    from qwen3llada.sampling.trace.page import write_trace_page

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
        settings = {"model": model} | params.model_dump(exclude={"samples", "extract"}) | {"seed": seed}
        write_trace_page(request.trace, traces, settings)


def check_request(request: SampleRequest, model: Path) -> None:
    """Raises InputError if the answers or the page must not be written to their paths."""
    given: dict[str, tuple[Path | None, Kind]] = {"out": (request.out, ANSWERS), "trace": (request.trace, PAGE)}
    writes = {knob: (path, kind) for knob, (path, kind) in given.items() if path is not None}
    check_destinations(writes, {"model": model, "prompts": request.prompts})


def print_answers(asked: Sequence[Exchange], answers: Iterable[Answer]) -> None:
    """Print the answers on stdout, each below its question if there are several, and its cost on stderr."""
    for question, answer in zip(asked, answers, strict=True):
        if len(asked) > 1:
            print(f"> {question.human}", flush=True)
        print(answer.answer, flush=True)
        print(answer.effort, file=sys.stderr, flush=True)


def read_questions(request: SampleRequest) -> Iterator[Exchange]:
    """The questions of a request, in order. Unused fields of the prompts file are named on stderr at the end.

    Raises: InputError naming the first prompt or line without a question.
    """
    for number, prompt in enumerate(request.prompt, start=1):
        if not filled(prompt):
            raise InputError(f"prompt {number}: {BLANK}")
        yield Exchange(prompt, "", request.system)
    if request.prompts is None:
        return
    unused: Counter[str] = Counter()
    for number, row in enumerate(read_jsonl(request.prompts), start=1):
        try:
            question, lost = read_question(row, request.system)
        except InputError as error:
            raise InputError(f"{request.prompts}: prompt {number}: {error}") from error
        unused.update(lost.fields)
        yield question
    if unused:
        named = ", ".join(f"{name} ({count})" for name, count in unused.items())
        print(f"warning: {request.prompts}: fields that are not asked: {named}", file=sys.stderr, flush=True)


def read_question(row: Any, system: str | None) -> tuple[Exchange, Lost]:
    """One prompt and the unused parts of its line. A line is a text, a question with or without answer, or a
    conversation.

    The last human turn of a conversation is asked, with all turns before it. A later answer is not shown to the model.
    `system` applies to lines without a system prompt; `"system": ""` on a question without answer means none.

    Raises: InputError unless there is a question, turns alternate up to it, and all of it is text.
    """
    if isinstance(row, str):
        if not filled(row):
            raise InputError(BLANK)
        return Exchange(row, "", system), Lost((), 0)
    if not isinstance(row, Mapping):
        raise InputError(f"must be a text or an object, given {type(row).__name__}")
    record = map_question(row)
    turns, own = record["conversations"], record["system"]
    if not isinstance(turns, list):
        raise InputError(f"a record must have {SHAPES_IN_WORDS}; this one has {sorted(map(str, row))}")
    if own is not None and not isinstance(own, str):
        name = next((field for field in SYSTEM_FIELDS if row.get(field) is own), "system")
        raise InputError(f"{name}={own!r} must be text or absent")
    roles = [role_of(turn) for turn in turns]
    if HUMAN not in roles:
        raise InputError(f"a record must have at least one human→gpt pair or question of human; its turns are {roles}")
    last = len(roles) - 1 - roles[::-1].index(HUMAN)
    if any(role != (HUMAN, GPT)[i % 2] for i, role in enumerate(roles)):
        raise InputError(f"human must begin and take turns with gpt; its turns are {roles}")
    texts = [turn_text(turn) for turn in turns[: last + 1]]
    if not filled(texts[-1]):
        raise InputError(BLANK)
    if filled(row.get(HISTORY)) and not history_turns(row[HISTORY]):
        raise InputError(f"{HISTORY} must be a list of [human, gpt] pairs or of turns, given {row[HISTORY]!r:.80}")
    asked = [{"from": role, "value": text} for role, text in zip(roles, texts, strict=False)]
    answers = [turn for turn in turns[last + 1 :] if isinstance(turn.get("value"), str)]
    lost = find_lost(row, {"conversations": asked + answers, "system": own}, known=ANSWER_FIELDS)
    if lost.media:
        raise InputError("it asks about an image, video or audio; the model reads text only")
    fields = dict.fromkeys((*lost.fields, *unused_settings(row, SampleParams.model_fields)))
    chosen = own if own or (own is not None and len(turns) == 1) else system
    return Exchange(texts[-1], "", chosen, tuple(zip(texts[:-1:2], texts[1::2], strict=True))), Lost(tuple(fields), 0)
