"""What a client may ask, in the form of OpenAI's interface, and what is wrong with it in one line."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from qwen3llada.commandline import validated
from qwen3llada.errors import InputError
from qwen3llada.modeling.attention import is_causal
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.params import AnswerParams, DecodeParams
from qwen3llada.sampling.request import check_request, checked_block_length, resolve_policy
from qwen3llada.section import plain_types
from qwen3llada.serving.messages import read_messages
from qwen3llada.serving.prompts import check_characters, encoded, listed, most_characters

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


@dataclass(frozen=True)
class Limits:
    """What is refused before a prompt is encoded, which takes long where it is long."""

    answers: int  # of one request
    characters: int | None = None  # of a prompt; None: no bound

    @classmethod
    def of(cls, text: TextModel, max_queue: int) -> "Limits":
        return cls(max_queue, most_characters(text))


class Body:
    """A JSON object whose fields are asked for by kind; what is left over is an error."""

    def __init__(self, values: Any, own: Sequence[str]) -> None:
        if not isinstance(values, Mapping):
            raise InputError(f"the body must be a JSON object, given {type(values).__name__}")
        allowed = {*COMMON, *KNOBS, *NEUTRAL, *own}
        if unknown := sorted(str(name) for name in values if name not in allowed):
            raise InputError(f"{unknown[0]}: unknown field; allowed: {', '.join(sorted(allowed))}")
        for name, neutral in NEUTRAL.items():
            if name in values and not any(_same(values[name], value) for value in neutral):
                raise InputError(f"{name}={values[name]!r:.80} is not supported; leave it out")
        for name in KNOBS:
            check_knob(name, values.get(name))
        if not isinstance(values.get("user"), str | None):
            raise InputError(f"user={values['user']!r:.80} must be a text")
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

    def choices(self) -> int:
        """Answers to each prompt."""
        return self.whole("n", 1, 1, MOST_CHOICES)

    def check_answers(self, prompts: int, limits: Limits) -> None:
        if prompts * self.choices() > limits.answers:
            raise InputError(
                f"{prompts} prompts with n={self.choices()} must be at most max_queue={limits.answers} answers in one"
                " request"
            )

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


def check_knob(name: str, value: Any) -> None:
    """Raises InputError for a text where a number, true or false belongs."""
    kinds = plain_types(DecodeParams.model_fields[name].annotation)
    if isinstance(value, str) and kinds & {bool, int, float}:
        raise InputError(f"{name}={value!r:.80} must be {'true or false' if bool in kinds else 'a number'}, not a text")


def _same(given: Any, value: Any) -> bool:
    """Whether a client gave this value; 1 is not true, and 0 is not false."""
    return isinstance(given, bool) == isinstance(value, bool) and bool(given == value)


def read_chat(text: TextModel, values: Any, defaults: AnswerParams, limits: Limits) -> Asked:
    """A body of /v1/chat/completions. Raises InputError."""
    body = Body(values, ("messages", "logprobs", "canvas"))
    exchange = read_messages(values.get("messages"))
    body.check_answers(1, limits)
    if text.model.config.prompt_template == "plain":  # another may leave out a part of a message
        said = "".join([exchange.system or "", *(turn for pair in exchange.history for turn in pair), exchange.human])
        check_characters([said], limits.characters, text.model.config.max_position_embeddings)
    return _asked(text, body, text.encode([exchange]), defaults, logprobs=body.switch("logprobs"))


def read_completion(text: TextModel, values: Any, defaults: AnswerParams, limits: Limits) -> Asked:
    """A body of /v1/completions: the prompt is text or token ids as they are, without a template. Raises InputError."""
    body = Body(values, ("prompt", "logprobs", "canvas"))
    given = values.get("logprobs")
    if given is not None and (type(given) is not int or given not in (0, 1)):
        raise InputError(f"logprobs={given!r:.80} must be 0 or 1: that of the token itself")
    prompts = listed(values.get("prompt"))
    body.check_answers(len(prompts), limits)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    check_characters(texts, limits.characters, text.model.config.max_position_embeddings)
    return _asked(text, body, encoded(text, prompts), defaults, logprobs=given is not None)


def _asked(text: TextModel, body: Body, prompts: list[list[int]], defaults: AnswerParams, *, logprobs: bool) -> Asked:
    stream, canvas = body.switch("stream"), body.switch("canvas")
    if canvas and not stream:
        raise InputError("canvas=true needs stream=true")
    asked = Asked(
        prompts=prompts,
        n=body.choices(),
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
