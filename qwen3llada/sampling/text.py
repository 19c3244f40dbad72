"""From text to text: loading a checkpoint, asking it in the form in which it was taught, reading its answers."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3llada.corpus.conversations import encode_prompts
from qwen3llada.corpus.records import Exchange
from qwen3llada.corpus.tokenizer import load_tokenizer
from qwen3llada.sampling.request import end_tokens
from qwen3llada.sampling.sampler import Generation, SampleParams, generate


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, and what it took."""

    prompt: str
    answer: str
    prompt_tokens: int
    answer_tokens: int  # with its EOS
    forward_passes: int  # of the batch that it was decoded in
    seconds: float  # of that batch
    backend: str


@dataclass(frozen=True)
class TextModel:
    """A model and its tokenizer."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path, *, bf16: bool = False) -> "TextModel":
        """The checkpoint in `folder`, on the GPU if there is one. Raises ValueError if it is not one."""
        from qwen3llada import Qwen3LLadaForMaskedLM

        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder}: no model: config.json is missing")
        model: Any = Qwen3LLadaForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16 if bf16 else torch.float32)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.to(device=device).eval()
        return cls(model, load_tokenizer(folder))

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer: what the config names, and what the tokenizer closed the answers in training with."""
        eos = self.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*end_tokens(self.model), *([] if eos is None else [eos])]))

    def encode(self, exchanges: Sequence[Exchange]) -> list[list[int]]:
        """Token ids of prompts, by the template stored with the checkpoint."""
        return encode_prompts(self.tokenizer, self.model.config.prompt_template, exchanges)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """Text of token ids, without control tokens and surrounding white space."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def answers(
        self, prompts: Sequence[Sequence[int]], params: SampleParams, *, seed: int, progress: bool = False
    ) -> Iterator[Answer]:
        """Answer encoded prompts in batches, in their order; a prompt's number is its key, so batches do not matter."""
        from tqdm import tqdm

        starts = range(0, len(prompts), params.batch_size)
        with tqdm(total=len(prompts), unit="prompt", disable=None if progress else True) as bar:
            for start in starts:
                batch = prompts[start : start + params.batch_size]
                begin = time.perf_counter()
                keys = range(start, start + len(batch))
                generation = generate(self.model, batch, params, seed=seed, row_keys=keys, eos_token_ids=self.ends)
                yield from self._answers(batch, generation, time.perf_counter() - begin)
                bar.update(len(batch))

    def _answers(self, prompts: Sequence[Sequence[int]], generation: Generation, seconds: float) -> Iterator[Answer]:
        for prompt, tokens in zip(prompts, generation.tokens, strict=True):
            yield Answer(
                prompt=self.decode(prompt),
                answer=self.decode(tokens),
                prompt_tokens=len(prompt),
                answer_tokens=len(tokens),
                forward_passes=generation.forward_passes,
                seconds=round(seconds, 4),
                backend=generation.backend,
            )
