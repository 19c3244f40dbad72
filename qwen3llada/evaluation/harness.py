"""qwen3llada models in EleutherAI's lm-evaluation-harness (`pip install '.[harness]'`).

    python -m qwen3llada.evaluation.harness --model qwen3llada --model_args pretrained=out/qwen3llada-sft --tasks …

is the program `lm_eval` with this model registered, as lm-eval documents for a model that lies outside of it: the class
is decorated and imported before lm-eval's own main function. All flags are lm-eval's.
Likelihoods are bounds by Monte Carlo (`likelihood.py`). What is drawn for a request depends on the seed and the
request's own tokens, so `--limit`, batches and the other requests change nothing.
"""

import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from qwen3llada.commandline import ParamsError, validated
from qwen3llada.errors import InputError
from qwen3llada.evaluation.harness_args import check_folder, read_generation, read_model_args
from qwen3llada.evaluation.harness_text import cut_at, encode_pair, key_of, windows_of
from qwen3llada.evaluation.likelihood import estimate
from qwen3llada.sampling.dialogue.library import load
from qwen3llada.sampling.params import AnswerParams
from qwen3llada.sampling.sampler import generate

log = logging.getLogger(__name__)


@register_model("qwen3llada")
class HarnessModel(LM):
    """A checkpoint as lm-eval sees it: text in, log-likelihoods and text out.

    `model_args` of lm-eval, all of them optional but the first:
        pretrained: folder of the checkpoint.
        rounds, seed, batch_tokens: of the likelihood bounds, as in `likelihood.nelbo`. seed is also the sampler's.
        dtype: float32 or bfloat16. device: as torch names it; None: the GPU if there is one.
        check_greedy: whether a likelihood also says that greedy decoding gives the continuation, which costs a
            sampling of each. Few tasks ask; false: the answer is always no.
        batch_size: answers decoded together; `auto`: 16, or max_batch_size if that is less.
        steps, gen_length, block_length, temperature, unmask, …: of the sampler (`AnswerParams`). A task's
            `max_gen_toks` goes before gen_length; without steps, there is one for each token.
    """

    def __init__(
        self, pretrained: str | None = None, *, dtype: str = "float32", device: str | None = None, **knobs: Any
    ) -> None:
        """Raises: InputError in one line for a wrong argument, and for a folder without such a checkpoint."""
        super().__init__()
        self._told: set[str] = set()
        folder = check_folder(pretrained)
        args, notes = read_model_args(knobs)
        self._tell(*notes)
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            self._tell(f"{device=}, which lm-eval asks for by itself, is not there: computing on the CPU")
            device = "cpu"
        self.text = load(folder, device=None if device is None else str(device), dtype=dtype)
        self.tokenizer = self.text.tokenizer
        self.params = args.answering
        self._steps_given = "steps" in knobs
        self.rounds, self.seed, self.batch_tokens = args.rounds, args.seed, args.batch_tokens
        self.check_greedy = args.check_greedy
        self._device = self.text.model.device

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that the model takes."""
        return self.text.model.config.max_position_embeddings

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results, so that they can be had again."""
        return {
            "model_num_parameters": self.text.model.num_parameters(),
            "model_dtype": str(self.text.model.dtype),
            "rounds": self.rounds,
            "seed": self.seed,
            "attention_policy": self.text.model.config.attention_policy,
            "sampling": self.params.model_dump(),
        }

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of the prompts in training, for lm-eval's records; None where it is not to be applied."""
        if chat_template is False or chat_template is None:
            return None
        return self.tokenizer.chat_template if self.text.model.config.prompt_template == "chat" else "plain"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation in the form in which the model was taught: plain, or the tokenizer's template."""
        if self.text.model.config.prompt_template == "chat":
            return self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        text = "".join(f"{message['content']}\n" for message in chat_history)
        return text if add_generation_prompt else text.removesuffix("\n")

    def encode(self, text: str) -> list[int]:
        """Token ids; the control tokens of a chat template are those tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both (see `harness_text.encode_pair`)."""
        return encode_pair(self.encode, self.tokenizer.bos_token_id, context, continuation)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(lower bound of log p(continuation | context), whether greedy decoding gives it) of each request."""
        pairs = [self._fitting(*self.encode_pair(*request.args)) for request in requests]
        sums = self._bounds(pairs)
        if self.check_greedy:
            greedy = self._greedy(pairs)
        else:
            self._tell("is_greedy is not computed and always false; check_greedy=true computes it")
            greedy = [False] * len(pairs)
        found = list(zip(sums, greedy, strict=True))
        for request, result in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Lower bound of log p(text) of each request: all tokens, from nothing.

        A text longer than the model takes is cut into windows; each but the first is given the last token before it.
        """
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            found = windows_of(self.encode(request.args[0]), self.max_length)
            windows += found
            owners += [number] * len(found)
        totals = [0.0] * len(requests)
        for owner, value in zip(owners, self._bounds(windows), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request's context, cut before the first of its stop strings."""
        contexts = [self.encode_pair(request.args[0], "")[0] for request in requests]
        asked = [self._generation(dict(request.args[1])) for request in requests]
        texts = [""] * len(requests)
        for params in dict.fromkeys(given for given, _ in asked):
            rows = [number for number, (given, _) in enumerate(asked) if given == params]
            answers = self._answers([contexts[row] for row in rows], params)
            for row, answer in zip(rows, answers, strict=True):
                decoded = self.tokenizer.decode(answer, skip_special_tokens=True)
                texts[row] = cut_at(decoded, asked[row][1])
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _bounds(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """log p of the second of each pair given the first; 0 where there is nothing to predict."""
        kept = [(given, tokens) for given, tokens in pairs if tokens]
        sums: list[float] = []
        if kept:
            found = estimate(
                self.text.model,
                [given + tokens for given, tokens in kept],
                rounds=self.rounds,
                seed=self.seed,
                prompt_lengths=[len(given) for given, _ in kept],
                batch_tokens=self.batch_tokens,
                keys=[key_of(given, tokens) for given, tokens in kept],
            )
            sums = [bound.nats for bound in found.log_likelihoods()]
        values = iter(sums)
        return [next(values) if tokens else 0.0 for _, tokens in pairs]

    def _greedy(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        found = []
        for given, tokens in pairs:
            length = max(1, len(tokens))
            params = self.params.model_copy(update={"gen_length": length, "steps": 2 * length, "temperature": 0.0})
            (answer,) = self._answers([given], params)
            found.append(answer[: len(tokens)] == tokens)
        return found

    def _answers(self, contexts: Sequence[list[int]], params: AnswerParams) -> list[list[int]]:
        """Tokens of the answers, without the EOS; those of similar length in one batch."""
        room = self.max_length - params.gen_length
        if room < 1:
            raise InputError(f"{params.gen_length} new tokens must be fewer than the model takes, {self.max_length}")
        if long := sum(len(context) > room for context in contexts):
            self._tell(f"{long} contexts are cut on the left to {room} tokens")
        order = sorted(range(len(contexts)), key=lambda row: -len(contexts[row]))
        answers: list[list[int]] = [[]] * len(contexts)
        for start in range(0, len(order), params.batch_size):
            rows = order[start : start + params.batch_size]
            batch = [contexts[row][-room:] for row in rows]
            keys = [key_of(context, []) for context in batch]
            ends = self.text.ends
            found = generate(self.text.model, batch, params, seed=self.seed, row_keys=keys, eos_token_ids=ends)
            for row, tokens in zip(rows, found.tokens, strict=True):
                kept = tokens.tolist()
                answers[row] = kept[:-1] if kept and kept[-1] in ends else kept
        return answers

    def _generation(self, given: dict[str, Any]) -> tuple[AnswerParams, tuple[str, ...]]:
        """The sampler's parameters and the stop strings of a request."""
        asked, notes = read_generation(given)
        self._tell(*notes)
        length = self.params.gen_length if asked.max_gen_toks is None else asked.max_gen_toks
        changes: dict[str, Any] = {"gen_length": length}
        if not self._steps_given:
            changes["steps"] = length + 1  # an answer of `length` tokens may begin within a block, and touch one more
        if asked.do_sample:
            changes["temperature"] = 1.0 if asked.temperature is None else asked.temperature
        params = validated(AnswerParams, self.params.model_dump() | changes, "generation_kwargs")
        return params, asked.stops

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The pair with its context cut on the left to what the model takes."""
        room = self.max_length - len(continuation)
        if room < 0:
            raise InputError(f"a continuation of {len(continuation)} tokens must not exceed {self.max_length}")
        if len(context) > room:
            self._tell(f"contexts are cut on the left to the model's {self.max_length} tokens")
        return context[len(context) - min(room, len(context)) :], continuation

    def _tell(self, *messages: str) -> None:
        """Log warnings, each once."""
        for message in messages:
            if message not in self._told:
                self._told.add(message)
                log.warning(message)


def main() -> None:
    """lm-eval's own program. Wrong arguments of the model are one line on stderr, with status 2; wrong files, 1."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ParamsError) else 1)


if __name__ == "__main__":
    main()
