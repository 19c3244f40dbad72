"""What a client may ask, in the form of OpenAI's interface, and what is wrong with it in one line."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from qwen3llada.commandline import validated
from qwen3llada.corpus.conversations.prompts import encode_texts
from qwen3llada.corpus.conversations.records import Exchange
from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import is_causal
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.params import AnswerParams, DecodeParams
from qwen3llada.sampling.request import check_request, checked_block_length, resolve_policy

KNOBS = tuple(name for name in DecodeParams.model_fields if name not in ("gen_length", "backend"))
COMMON = ("model", "n", "stream", "stream_options", "stop", "seed", "max_tokens", "max_completion_tokens", "user")
# Taken only with the value that changes nothing: what they ask for does not exist here.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1, None),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": ({}, None),
    "tools": ([], None),
    "tool_choice": ("none", None),
    "response_format": ({"type": "text"}, None),
    "top_logprobs": (0, None),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": ("", None),
    "store": (False, None),
    "metadata": ({}, None),
    "parallel_tool_calls": (True, None),
}
MOST_CHOICES, MOST_STOPS, MOST_SEED = 128, 4, 2**63


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A valid request: prompts and how each is answered `n` times."""

    prompts: list[list[int]]
    n: int
    params: DecodeParams
    seed: int
    stops: tuple[str, ...]
    stream: bool
    usage: bool  # as the last chunk of a stream
    logprobs: bool
    canvas: bool


class Body:
    """A JSON object whose fields are asked for by kind; what is left over is an error."""

    def __init__(self, values: Any, own: Sequence[str]) -> None:
        if not isinstance(values, Mapping):
            raise InputError(f"the body must be a JSON object, given {type(values).__name__}")
        allowed = {*COMMON, *KNOBS, *NEUTRAL, *own}
        if unknown := sorted(str(name) for name in values if name not in allowed):
            raise InputError(f"{unknown[0]}: unknown field; allowed: {', '.join(sorted(allowed))}")
        for name, neutral in NEUTRAL.items():
            if name in values and not any(values[name] == value for value in neutral):
                raise InputError(f"{name}={values[name]!r:.80} is not supported; leave it out")
        self.values = values

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InputError(f"{name}={value!r:.80} must be a whole number from {low:,} to {high:,}")
        return value

    def switch(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool | None):
            raise InputError(f"{name}={value!r:.80} must be true or false")
        return bool(value)

    def usage(self, stream: bool) -> bool:
        """Whether a stream ends with the usage."""
        options = self.values.get("stream_options")
        if options is None:
            return False
        if not stream:
            raise InputError(f"stream_options={options!r:.80} needs stream=true")
        allowed = {"include_usage": (True, False, None), "include_obfuscation": (False, None)}
        if not isinstance(options, Mapping) or not all(
            name in allowed and any(value is one for one in allowed[name]) for name, value in options.items()
        ):
            raise InputError(f"stream_options={options!r:.80} may hold include_usage alone, which is true or false")
        return bool(options.get("include_usage"))

    def stops(self) -> tuple[str, ...]:
        value = self.values.get("stop")
        stops = [] if value is None else [value] if isinstance(value, str) else value
        fits = isinstance(stops, list) and len(stops) <= MOST_STOPS
        if not fits or not all(isinstance(stop, str) and stop for stop in stops):
            raise InputError(f"stop={value!r:.80} must be a text or a list of at most {MOST_STOPS} texts, none empty")
        return tuple(stops)


def read_chat(text: TextModel, values: Any, defaults: AnswerParams) -> Asked:
    """A body of /v1/chat/completions. Raises InputError."""
    body = Body(values, ("messages", "logprobs", "canvas"))
    exchange = _exchange(values.get("messages"))
    return _asked(text, body, text.encode([exchange]), defaults, logprobs=body.switch("logprobs"))


def read_completion(text: TextModel, values: Any, defaults: AnswerParams) -> Asked:
    """A body of /v1/completions: the prompt is text or token ids as they are, without a template. Raises InputError."""
    body = Body(values, ("prompt", "logprobs", "canvas"))
    given = values.get("logprobs")
    if not (given is None or (isinstance(given, int) and given in (0, 1))):
        raise InputError(f"logprobs={given!r:.80} must be 0 or 1: that of the token itself")
    return _asked(text, body, _prompts(text, values.get("prompt")), defaults, logprobs=given is not None)


def _asked(text: TextModel, body: Body, prompts: list[list[int]], defaults: AnswerParams, *, logprobs: bool) -> Asked:
    stream, canvas = body.switch("stream"), body.switch("canvas")
    if canvas and not stream:
        raise InputError("canvas=true needs stream=true")
    asked = Asked(
        prompts=prompts,
        n=body.whole("n", 1, 1, MOST_CHOICES),
        params=_params(text, body, prompts, defaults),
        seed=body.whole("seed", secrets.randbits(62), 0, MOST_SEED - 1),
        stops=body.stops(),
        stream=stream,
        usage=body.usage(stream),
        logprobs=logprobs,
        canvas=canvas,
    )
    check_request(text.model, prompts, asked.params)
    return asked


def _params(text: TextModel, body: Body, prompts: list[list[int]], defaults: AnswerParams) -> DecodeParams:
    """The sampler's parameters: the server's, and what the body says otherwise. Steps grow with the answer's length."""
    highest = text.model.config.max_position_embeddings
    names = [name for name in ("max_tokens", "max_completion_tokens") if body.values.get(name) is not None]
    lengths = {body.whole(name, 1, 1, highest) for name in names}
    if len(lengths) > 1:
        raise InputError("max_tokens and max_completion_tokens must not differ")
    length = lengths.pop() if lengths else defaults.gen_length
    given = {name: body.values[name] for name in KNOBS if body.values.get(name) is not None}
    base = {name: getattr(defaults, name) for name in DecodeParams.model_fields} | {"gen_length": length} | given
    params = validated(DecodeParams, base | {"steps": given.get("steps", defaults.steps)}, "request")
    if "steps" in given:
        return params
    block_length = checked_block_length(text.model.config, params)
    causal = is_causal(resolve_policy(text.model.config, params))
    rest = max(len(prompt) % block_length for prompt in prompts) if causal else 0
    blocks = ceil((rest + length) / block_length)
    return params.model_copy(update={"steps": max(blocks, ceil(length * defaults.steps / defaults.gen_length))})


def _prompts(text: TextModel, given: Any) -> list[list[int]]:
    listed = given if isinstance(given, list) else [given]
    if listed and all(isinstance(part, str) for part in listed):
        bos = [] if text.tokenizer.bos_token_id is None else [text.tokenizer.bos_token_id]
        return [bos + ids for ids in encode_texts(text.tokenizer, listed)]
    rows = listed if listed and all(isinstance(part, list) for part in listed) else [listed]
    if not all(rows) or not all(isinstance(i, int) and not isinstance(i, bool) for row in rows for i in row):
        raise InputError(f"prompt={given!r:.80} must be a text, a list of texts, token ids, or a list of these")
    return rows


def _exchange(messages: Any) -> Exchange:
    """The last question of a conversation with all before it."""
    if not isinstance(messages, list) or not messages:
        raise InputError("messages must be a list with at least one message")
    turns = [(_role(number, message), _content(number, message)) for number, message in enumerate(messages)]
    system = None
    if turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    roles = [role for role, _ in turns]
    if not roles or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)) or roles[-1] != "user":
        raise InputError(
            f"messages must be an optional system message, then user and assistant in turn, a user last; given {roles}"
        )
    contents = [content for _, content in turns]
    if not contents[-1].strip():
        raise InputError("messages: the question is blank")
    return Exchange(contents[-1], "", system, tuple(zip(contents[:-1:2], contents[1::2], strict=True)))


def _role(number: int, message: Any) -> str:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ("system", "developer", "user", "assistant"):
        raise InputError(f"messages[{number}]: role={role!r:.40} must be system, developer, user or assistant")
    for name, value in message.items():
        if name not in ("role", "content") and value not in (None, "", [], {}):
            raise InputError(f"messages[{number}]: {name!s:.40}={value!r:.40} is not supported; leave it out")
    return "system" if role == "developer" else str(role)


def _content(number: int, message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, Mapping) and p.get("type") == "text" else None for p in content]
        content = "".join(p for p in parts if isinstance(p, str)) if all(isinstance(p, str) for p in parts) else None
    if not isinstance(content, str):
        raise InputError(f"messages[{number}]: content must be text, or a list of text parts")
    return content
