"""Text to text: load a checkpoint, format prompts with its template, decode its answers."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3llada.corpus.conversations.prompts import encode_prompts
from qwen3llada.corpus.conversations.records import Exchange
from qwen3llada.corpus.tokens.tokenizer import load_tokenizer
from qwen3llada.errors import InputError
from qwen3llada.modeling.loading import load_pretrained
from qwen3llada.sampling.params import AnswerParams
from qwen3llada.sampling.request import check_request, end_tokens
from qwen3llada.sampling.sampler import Generation, generate
from qwen3llada.sampling.trace.recording import Decided, TraceRecorder

MASK, END = "▒", "∎"  # how a masked position and the end of an answer are shown


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, and how it was made."""

    prompt: str
    answer: str
    prompt_tokens: int
    answer_tokens: int  # including its EOS
    forward_passes: int  # of its batch
    seconds: float  # of its batch
    backend: str

    @property
    def text(self) -> str:
        """The answer's text; the same as `answer`, which is the name in files."""
        return self.answer

    @property
    def effort(self) -> str:
        """Cost of the answer, for people."""
        plural = "" if self.answer_tokens == 1 else "s"
        return f"{self.answer_tokens} token{plural}, {self.forward_passes} forward passes, {self.seconds:.2f} s"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One answer and the record of its decoding."""

    answer: Answer
    tokens: list[tuple[str, Decided]]  # text added by each token; the rest of its last block follows the answer
    steps: int  # forward passes of its batch
    earlier: Mapping[int, list[tuple[int, str | None, float]]]
    """Of tokens that were revised, by their number: what stood there before, oldest first, as the step after which it
    did, its text (None: masked again) and its confidence."""


@dataclass(frozen=True)
class TextModel:
    """A model and its tokenizer."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path, *, bf16: bool = False, device: torch.device | None = None) -> "TextModel":
        """Load the checkpoint in `folder`, by default onto the GPU if there is one.

        Raises: InputError if it is none, if a weight is nan or infinite, or if model and tokenizer do not agree on the
        mask token.
        """
        model = load_pretrained(folder, dtype=torch.bfloat16 if bf16 else torch.float32)
        model.to(device=device or torch.device("cuda" if torch.cuda.is_available() else "cpu")).eval()
        tokenizer, mask = load_tokenizer(folder), model.config.mask_token_id
        if tokenizer.mask_token_id not in (None, mask):
            raise InputError(
                f"{folder}: mask_token_id={mask} in config.json must be that of its tokenizer,"
                f" {tokenizer.mask_token_id}"
            )
        for name, weight in model.named_parameters():
            if not weight.sum(dtype=torch.float32).isfinite():  # a sum needs no second tensor
                raise InputError(f"{folder}: {name} holds nan or infinite values; every answer would be nonsense")
        return cls(model, tokenizer)

    @property
    def ends(self) -> tuple[int, ...]:
        """Token ids that end an answer: those of the config, and the tokenizer's EOS that ended answers in training."""
        eos = self.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*end_tokens(self.model), *([] if eos is None else [eos])]))

    def encode(self, exchanges: Sequence[Exchange]) -> list[list[int]]:
        """Token ids of prompts, formatted with the checkpoint's template."""
        return encode_prompts(self.tokenizer, self.model.config.prompt_template, exchanges)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """Text of token ids, without control tokens and without surrounding white space."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text that each token adds to the tokens before it; `MASK` and `END` for masks and end tokens.

        A character that spans several tokens is shown with its last token.
        """
        marks = {self.model.config.mask_token_id: MASK} | dict.fromkeys(self.ends, END)
        shown: list[str] = []
        start = read = 0  # text of tokens[start:read] is already shown; it is the context for decoding the next tokens
        for number, token in enumerate(tokens, start=1):
            if token in marks:
                shown.append(marks[token])
                start = read = number
                continue
            before, now = (self.tokenizer.decode(tokens[start:stop]) for stop in (read, number))
            last = number == len(tokens) or tokens[number] in marks
            whole = last or not now.endswith("\ufffd")
            shown.append(now[len(before) :] if whole else "")
            if whole:
                start, read = read, number
        return shown

    def _alone(self, token: int | None) -> str | None:
        """The text of one token; None for None."""
        return None if token is None else self.pieces([token])[0]

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        params: AnswerParams,
        *,
        seed: int,
        progress: bool = False,
        on_trace: Callable[[Trace], None] | None = None,
    ) -> Iterator[Answer]:
        """Answer encoded prompts in batches, in order. The noise key is the prompt's number, so batching has no effect.

        `on_trace` is called with each answer's trace, in order.
        """
        from tqdm import tqdm

        check_request(self.model, prompts, params)  # checks all prompts before the first is answered
        starts = range(0, len(prompts), params.batch_size)
        with tqdm(total=len(prompts), unit="prompt", disable=None if progress else True) as bar:
            for start in starts:
                batch = prompts[start : start + params.batch_size]
                begin = time.perf_counter()
                recorder, keys = TraceRecorder() if on_trace else None, range(start, start + len(batch))
                generation = generate(
                    self.model, batch, params, seed=seed, row_keys=keys, eos_token_ids=self.ends, on_step=recorder
                )
                answers = self.describe(batch, generation, time.perf_counter() - begin)
                if recorder is not None and on_trace is not None:
                    for trace in self.traces(answers, batch, recorder):
                        on_trace(trace)
                yield from answers
                bar.update(len(batch))

    def describe(self, prompts: Sequence[Sequence[int]], generation: Generation, seconds: float) -> list[Answer]:
        """The answers of a generation that took `seconds`."""
        return [
            Answer(
                prompt=self.decode(prompt),
                answer=self.decode(tokens),
                prompt_tokens=len(prompt),
                answer_tokens=len(tokens),
                forward_passes=generation.forward_passes,
                seconds=round(seconds, 4),
                backend=generation.backend,
            )
            for prompt, tokens in zip(prompts, generation.tokens, strict=True)
        ]

    def traces(
        self, answers: Sequence[Answer], prompts: Sequence[Sequence[int]], recorder: TraceRecorder
    ) -> Iterator[Trace]:
        """Traces of a batch of answers, from the recorder that watched their generation."""
        start = max(map(len, prompts))
        for row, answer in enumerate(answers):
            decided = recorder.row(row, start)
            pieces = self.pieces([position.token for position in decided])
            earlier = {
                number: [
                    (c.step, None if c.token is None else self.pieces([c.token])[0], c.confidence) for c in changes
                ]
                for number, changes in enumerate(position.earlier for position in decided)
                if changes
            }
            tokens = list(zip(pieces, decided, strict=True))
            yield Trace(answer=answer, tokens=tokens, steps=recorder.steps, earlier=earlier)
