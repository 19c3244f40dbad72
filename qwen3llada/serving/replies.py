"""Answers in the form of OpenAI's interface, whole or as the chunks of a stream."""

import json
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.serving.bodies import Asked
from qwen3llada.serving.jobs import Job, Update
from qwen3llada.serving.token_bytes import token_bytes

Kind = Literal["chat", "completion"]
OBJECTS = {"chat": ("chat.completion", "chat.completion.chunk"), "completion": ("text_completion", "text_completion")}


def error_body(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """An error. `param` is the field that the message begins with, where it begins with one."""
    message = message.encode(errors="backslashreplace").decode()  # half a surrogate pair cannot be sent
    name = message.split("=", 1)[0].split(":", 1)[0]
    param = name if name.isidentifier() else None
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Replies:
    """The replies to one request."""

    def __init__(self, text: TextModel, kind: Kind, model: str, number: str, asked: Asked) -> None:
        self.text, self.kind, self.model, self.asked = text, kind, model, asked
        self.id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{number}"
        self.created = int(time.time())

    def _envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": OBJECTS[self.kind][chunk],
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def whole(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The reply to a request without a stream; all jobs are finished."""
        body = self._envelope([self._choice(job) for job in jobs], chunk=False)
        own = {"seed": self.asked.seed, "forward_passes": [job.passes for job in jobs]}
        return body | {"usage": self.usage(jobs), "qwen3llada": own}

    def usage(self, jobs: Sequence[Job]) -> dict[str, int]:
        prompt = sum(map(len, self.asked.prompts))
        answers = sum(len(job.progress.tokens) for job in jobs)
        return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers}

    def _choice(self, job: Job) -> dict[str, Any]:
        progress = job.progress
        choice: dict[str, Any] = {"index": job.index, "finish_reason": progress.finish}
        choice["logprobs"] = self._log_probs(job, 0, len(progress.tokens)) if self.asked.logprobs else None
        if self.kind == "chat":
            return choice | {"message": {"role": "assistant", "content": progress.text, "refusal": None}}
        return choice | {"text": progress.text}

    def _log_probs(self, job: Job, first: int, last: int) -> dict[str, Any]:
        """Of the settled tokens `first` to `last` (exclusive): the probability that each had when it was committed."""
        tokenizer, tokens = self.text.tokenizer, job.progress.tokens
        values, pieces = job.progress.log_probs[first:last], [tokenizer.decode([token]) for token in tokens[first:last]]
        if self.kind == "completion":
            offsets = self._offsets(tokens[:last])[first:]
            return {"tokens": pieces, "token_logprobs": values, "top_logprobs": None, "text_offset": offsets}
        content = [
            {"token": piece, "logprob": value, "bytes": list(token_bytes(tokenizer, token)), "top_logprobs": []}
            for piece, value, token in zip(pieces, values, tokens[first:last], strict=True)
        ]
        return {"content": content, "refusal": None}

    def _offsets(self, tokens: Sequence[int]) -> list[int]:
        """Characters of the text before each token. All tokens of a character have its place."""
        unseen = self.text.tokenizer.all_special_ids
        lengths = [
            0 if token in unseen or token in self.text.ends else len(piece)
            for token, piece in zip(tokens, self.text.pieces(tokens), strict=True)
        ]
        return [*accumulate(lengths, initial=0)][:-1]

    def first_chunk(self, index: int) -> str:
        """A chat's stream begins with the role of each choice."""
        delta = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return event(self._envelope([delta], chunk=True))

    def chunk(self, job: Job, update: Update, first: int) -> str:
        """What an update adds; `first`: the settled tokens that were sent before."""
        finish = job.progress.finish if update.finished else None
        choice: dict[str, Any] = {"index": job.index, "finish_reason": finish}
        choice["logprobs"] = self._log_probs(job, first, update.settled) if self.asked.logprobs else None
        own = {"delta": {"content": update.text} if update.text else {}}
        body = self._envelope([choice | (own if self.kind == "chat" else {"text": update.text})], chunk=True)
        if update.canvas is not None:
            pieces = self.text.pieces([token for token, _ in update.canvas])
            shown = [[piece, round(sure, 4)] for piece, (_, sure) in zip(pieces, update.canvas, strict=True)]
            body["qwen3llada"] = {"index": job.index, "step": update.step, "canvas": shown}
        return event(body)

    def last_chunk(self, jobs: Sequence[Job]) -> str:
        """The usage, where it is asked for."""
        return event(self._envelope([], chunk=True) | {"usage": self.usage(jobs)})


def event(body: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
