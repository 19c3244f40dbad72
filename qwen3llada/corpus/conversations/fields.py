"""Tables of field names in a row, and the conversion of field values to text (docs/data.md)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

HUMAN, GPT, SYSTEM = "human", "gpt", "system"
#: Names of speakers in data sets -> our roles.
ROLES = {"human": HUMAN, "user": HUMAN, "gpt": GPT, "assistant": GPT, "system": SYSTEM, "developer": SYSTEM}
#: Columns that hold a list of turns.
TURN_LISTS = ("conversations", "messages")
#: (column of the prompt, column of the answer), in order of precedence.
PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("query", "response"),
    ("inputs", "targets"),
    ("input", "output"),
)
PROMPTS = tuple(dict.fromkeys(prompt for prompt, _ in PAIRS))
ANSWERS = tuple(dict.fromkeys(answer for _, answer in PAIRS))
SHAPES_IN_WORDS = f"{', '.join(TURN_LISTS)}, or a pair of columns such as " + ", ".join(
    "/".join(pair) for pair in PAIRS
)
SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
#: Fields with the material that a prompt refers to. Each is appended below the prompt, in this order.
CONTEXT_FIELDS = ("input", "context", "passage")
CHOICE_FIELDS = ("choices", "options")
HISTORY = "history"
ROLE_FIELDS, TEXT_FIELDS = ("from", "role"), ("value", "content")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
#: Fields of a turn that tell whether its answer is trained on: OpenAI's, Axolotl's two, ms-swift's.
MARKS = ("weight", "train", "training", "loss")
#: Fields whose text belongs to a conversation, even if it is a single word.
CONTENT = frozenset(
    (*PROMPTS, *ANSWERS, *SYSTEM_FIELDS, *CONTEXT_FIELDS, *CHOICE_FIELDS, HISTORY, *TEXT_FIELDS, *REASONING_FIELDS)
)
TEXT_PARTS = (None, "text", "input_text", "output_text")
_MEDIA_PART = re.compile(r"(?:input_)?(?:image|img|video|audio|file)(?:_url|_file)?")
_CHOICE = re.compile(r"[A-Za-z]|\d{1,2}")


def filled(value: Any) -> bool:
    """Whether a value has content: not null, blank, or a list or object with nothing else in it."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, Mapping):
        return any(map(filled, value.values()))
    if isinstance(value, list | tuple):
        return any(map(filled, value))
    return value is not None


def pick(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of `names` that is filled in `row`; else the first that is not null; else the first that exists."""
    for accepts in (filled, lambda value: value is not None, lambda value: True):
        for name in names:
            if name in row and accepts(row[name]):
                return name
    return None


def is_media_part(part: Any) -> bool:
    """Whether a part of a content list is an image, video, audio or file."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and _MEDIA_PART.fullmatch(kind) is not None


def content_text(value: Any) -> Any:
    """The text of a content list: its text parts, joined by newlines (as vLLM does for text-only templates).

    Media parts are left out (rule `media`). Any other value, and a list with other parts, is returned unchanged.
    """
    if not isinstance(value, list) or not value:
        return value
    texts = []
    for part in value:
        if is_media_part(part):
            continue
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") in TEXT_PARTS else None
        if not isinstance(text, str):
            return value
        texts.append(text)
    return "\n".join(texts)


def prompt_text(row: Mapping[str, Any], column: str) -> Any:
    """The prompt in `column`, then its context and its choices, each on a new line unless the prompt contains it.

    LLaMA-Factory, too, puts one newline between instruction and input.
    """
    prompt = row[column]
    if not isinstance(prompt, str):
        return prompt
    parts = [prompt]
    for name in CONTEXT_FIELDS:
        part = lines_text(row.get(name)) if name != column else None
        # Prompts in other columns may already contain their context; an instruction always comes with a separate input.
        if part is not None and (column == "instruction" or len(part.split()) == 1 or part not in prompt):
            parts.append(part)
    for name in CHOICE_FIELDS:
        lines = choices_text(row.get(name))
        if lines is not None and not _lists(prompt, lines):
            parts.append(lines)
    return "\n".join(parts)


def _lists(prompt: str, choices: str) -> bool:
    """Whether every choice ends a line of the prompt."""
    texts = [line.partition(". ")[2] for line in choices.splitlines()]
    return all(any(line.endswith(text) for line in prompt.splitlines()) for text in texts)


def lines_text(value: Any) -> str | None:
    """A text, or a list of texts joined by newlines; None for anything else and for values without content."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    return value if isinstance(value, str) and filled(value) else None


def choices_text(value: Any) -> str | None:
    """Choices as lines "A. text", from texts, labels with texts (ARC), an object, or a list of objects."""
    if isinstance(value, str):
        return lines_text(value)
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        pairs = [(chr(ord("A") + i) if i < 26 else str(i + 1), item) for i, item in enumerate(value)]
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        pairs = [(item.get("label", item.get("key")), item.get("text", item.get("value"))) for item in value]
    elif isinstance(value, Mapping) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        if len(value["text"]) == len(value["label"]):
            pairs = list(zip(value["label"], value["text"], strict=True))
    elif isinstance(value, Mapping):
        pairs = [(label, text) for label, text in value.items() if text is not None]
    fit = all(isinstance(text, str) and isinstance(label, str) and _CHOICE.fullmatch(label) for label, text in pairs)
    return "\n".join(f"{label}. {text}" for label, text in pairs) if pairs and fit else None


def answer_text(fields: Mapping[str, Any], answer: Any) -> Any:
    """An answer preceded by the reasoning from other fields, in the form of Qwen3's chat template."""
    reasoning = next((fields[name] for name in REASONING_FIELDS if filled(fields.get(name))), None)
    if not isinstance(answer, str) or not filled(answer) or not isinstance(reasoning, str) or "</think>" in answer:
        return answer
    newlines = "\n"
    return f"<think>\n{reasoning.strip(newlines)}\n</think>\n\n{answer.lstrip(newlines)}"


def taught(fields: Mapping[str, Any]) -> Any:
    """Whether a turn may be trained on: True, False, or the first mark that is neither true (1) nor false (0).

    One false mark is enough. Null marks are ignored.
    """
    marks = [fields[name] for name in MARKS if fields.get(name) is not None]
    for mark in marks:
        if not isinstance(mark, bool | int | float) or mark not in (0, 1):
            return mark
    return all(marks)
