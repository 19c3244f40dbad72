"""Quality against speed: the same prompts answered at several settings of the sampler."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3llada.errors import InputError
from qwen3llada.evaluation.likelihood import estimate
from qwen3llada.evaluation.params import EvaluateParams
from qwen3llada.evaluation.processes import Processes
from qwen3llada.modeling.attention import is_causal
from qwen3llada.sampling.dialogue.exact_match import compared
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.params import SampleParams
from qwen3llada.sampling.request import check_request, checked_block_length, resolve_policy
from qwen3llada.sampling.sampler import generate

NO_TOKEN = -1  # after an answer's end, in the table that processes exchange


@dataclass(frozen=True)
class Quality:
    """What one setting gave. Tokens are those of the answers, up to and with their EOS; what follows is not counted."""

    unmask: str
    setting: float  # the confidence threshold, or the tokens that a step commits
    exact_match: float
    answer_nll: float  # nats per token of the answers that were given, by the model's own bound
    answer_nll_error: float
    tokens: int
    forward_passes: int  # of all batches
    tokens_per_pass: float  # of one row: tokens divided by the passes of its batch


@dataclass(frozen=True)
class Speed:
    """How fast that was, on this machine."""

    unmask: str
    setting: float
    seconds: float  # of sampling, the batches one after the other
    tokens_per_second: float


def settings(params: EvaluateParams, sample: SampleParams, config: Any) -> list[tuple[float, SampleParams]]:
    """The section `sample` with each confidence threshold, and with each number of tokens a step.

    Raises: InputError for a step of more tokens than a block of the model holds.
    """
    by_threshold = [
        (value, sample.model_copy(update={"unmask": "threshold", "confidence_threshold": value}))
        for value in params.confidence_thresholds
    ]
    block_length = checked_block_length(config, sample)
    # Where blocks are counted from position 0, an answer may begin within one.
    before = block_length - 1 if is_causal(resolve_policy(config, sample)) else 0
    blocks = -(-(before + sample.gen_length) // block_length)
    by_steps = []
    for value in params.tokens_per_step:
        if value > block_length:
            raise InputError(f"tokens_per_step={value} must not exceed {block_length=}, since steps are a block's")
        steps = max(-(-sample.gen_length // value), blocks)
        by_steps.append((value, sample.model_copy(update={"unmask": "fixed", "steps": steps})))
    # Under a threshold a block takes what steps it needs, but the schedule is planned all the same.
    return [*((v, s.model_copy(update={"steps": max(s.steps, blocks)})) for v, s in by_threshold), *by_steps]


def measure_quality(
    text: TextModel,
    prompts: Sequence[Sequence[int]],
    references: Sequence[str],
    params: EvaluateParams,
    sample: SampleParams,
    processes: Processes,
) -> tuple[list[Quality], list[Speed]]:
    """Answer the prompts at every setting. The processes share out the batches.

    Raises: InputError if a setting does not fit the model or the prompts, before anything is sampled.
    """
    chosen = settings(params, sample, text.model.config)
    for _, given in chosen:
        check_request(text.model, prompts, given)
    results = [_at(text, prompts, references, value, given, params, processes) for value, given in chosen]
    return [quality for quality, _ in results], [speed for _, speed in results]


def _at(
    text: TextModel,
    prompts: Sequence[Sequence[int]],
    references: Sequence[str],
    value: float,
    sample: SampleParams,
    params: EvaluateParams,
    processes: Processes,
) -> tuple[Quality, Speed]:
    tokens, passes, seconds = _answers(text, prompts, sample, params.seed, processes)
    answers = [row[row != NO_TOKEN].tolist() for row in tokens]
    matches = [
        compared(text.decode(answer), reference, sample.extract)["match"]
        for answer, reference in zip(answers, references, strict=True)
    ]
    bound = (
        estimate(
            text.model,
            [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)],
            rounds=params.answer_rounds,
            seed=params.seed,
            prompt_lengths=[len(prompt) for prompt in prompts],
            batch_tokens=params.batch_tokens,
            share=processes.share,
        )
        .reduced(processes.sum)
        .per_token()
    )
    count, rows = sum(map(len, answers)), np.bincount(np.arange(len(prompts)) // sample.batch_size)
    quality = Quality(
        unmask=sample.unmask,
        setting=value,
        exact_match=round(sum(matches) / len(matches), 6),
        answer_nll=round(bound.nats, 6),
        answer_nll_error=round(bound.standard_error, 6),
        tokens=count,
        forward_passes=int(passes.sum()),
        tokens_per_pass=round(count / float((passes * rows).sum()), 6),
    )
    total = float(seconds.sum())
    return quality, Speed(sample.unmask, value, round(total, 3), round(count / total, 1))


def _answers(
    text: TextModel, prompts: Sequence[Sequence[int]], sample: SampleParams, seed: int, processes: Processes
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Answers [P, gen_length], `NO_TOKEN` after their end; forward passes and seconds of each batch."""
    starts = range(0, len(prompts), sample.batch_size)
    tokens = np.zeros((len(prompts), sample.gen_length), np.int64)
    passes, seconds = np.zeros(len(starts), np.int64), np.zeros(len(starts))
    for number in range(processes.rank, len(starts), processes.count):
        rows = range(starts[number], min(starts[number] + sample.batch_size, len(prompts)))
        begin = time.perf_counter()
        found = generate(
            text.model, [prompts[row] for row in rows], sample, seed=seed, row_keys=rows, eos_token_ids=text.ends
        )
        answers = [answer.tolist() for answer in found.tokens]  # waits for the device
        seconds[number], passes[number] = time.perf_counter() - begin, found.forward_passes
        for row, answer in zip(rows, answers, strict=True):
            tokens[row] = answer + [NO_TOKEN] * (sample.gen_length - len(answer))
    return processes.sum(tokens), processes.sum(passes), processes.sum(seconds)


def as_rows(found: Sequence[Quality | Speed]) -> list[dict[str, Any]]:
    """For JSON and tables."""
    return [asdict(entry) for entry in found]
