"""A conversation from Python: each question is answered with all that was said before."""

import time
from collections.abc import Callable

from qwen3llada.corpus.conversations.records import Exchange
from qwen3llada.sampling.decoding import Step
from qwen3llada.sampling.dialogue.text_model import Answer, TextModel
from qwen3llada.sampling.params import DecodeParams
from qwen3llada.sampling.sampler import generate
from qwen3llada.sampling.session import Session


class Conversation:
    """Questions and answers so far, and how the next one is answered. The attributes may be changed between turns.

    Under causal policies an earlier turn's keys and values are kept (`Session`), so that a turn computes what is new.
    """

    def __init__(self, text: TextModel, params: DecodeParams, *, seed: int = 0, system: str | None = None) -> None:
        self.text, self.params, self.seed, self.system = text, params, seed, system
        self.history: list[tuple[str, str]] = []
        self._session = Session()

    def prompt(self, question: str) -> list[int]:
        """Token ids of the question with all before it, by the checkpoint's template."""
        (tokens,) = self.text.encode([Exchange(question, "", self.system, tuple(self.history))])
        return tokens

    def ask(self, question: str, *, on_step: Callable[[Step], None] | None = None) -> Answer:
        """Answer a question and remember both. The noise depends on the seed and the number of the turn.

        Args:
            on_step: called after each forward pass. If it raises, nothing is remembered.

        Raises: InputError if the conversation has become too long, or the parameters do not fit it.
        """
        prompt, begin = self.prompt(question), time.perf_counter()
        generation = generate(
            self.text.model,
            [prompt],
            self.params,
            seed=self.seed,
            row_keys=[len(self.history)],
            eos_token_ids=self.text.ends,
            session=self._session,
            on_step=on_step,
        )
        (answer,) = self.text.describe([prompt], generation, time.perf_counter() - begin)
        self.history.append((question, answer.answer))
        return answer

    def reset(self) -> None:
        """Forget what was said, and free what was kept of it."""
        self.history.clear()
        self._session = Session()
