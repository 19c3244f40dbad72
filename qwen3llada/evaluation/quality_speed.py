"""Quality against speed: the same prompts answered at several settings of the sampler."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3llada.commandline import validated
from qwen3llada.errors import InputError
from qwen3llada.evaluation.likelihood import Bound, estimate
from qwen3llada.evaluation.params import EvaluateParams
from qwen3llada.evaluation.processes import Processes
from qwen3llada.modeling.attention import is_causal
from qwen3llada.sampling.dialogue.exact_match import compared
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.params import SampleParams
from qwen3llada.sampling.request import check_request, checked_block_length, resolve_policy
from qwen3llada.sampling.sampler import generate
from qwen3llada.sampling.unmasking import UNMASKING

NO_TOKEN = -1  # after an answer's end, in the table that processes exchange


@dataclass(frozen=True)
class Quality:
    """What one setting gave. Tokens are those of the answers, up to and with their EOS; what follows is not counted."""

    unmask: str  # the way of unmasking, and further knobs of the setting
    setting: float | str  # the confidence threshold, the tokens that a step commits, or the knobs of the setting
    exact_match: float
    answer_nll: float  # nats per token of the answers that were given, by the model's own bound
    answer_nll_error: float | None  # None where one draw is all there is
    tokens: int
    forward_passes: int  # of all batches
    tokens_per_pass: float  # of one row: tokens divided by the passes of its batch


@dataclass(frozen=True)
class Speed:
    """How fast that was, on this machine."""

    unmask: str
    setting: float | str
    seconds: float  # of sampling, the batches one after the other
    tokens_per_second: float
    backend: str  # "graph" or "eager", see `Generation`


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of the sampler, and what it is called."""

    unmask: str  # the way of unmasking, and which other knobs differ from the section `sample`
    value: float | str
    sample: SampleParams


def settings(params: EvaluateParams, sample: SampleParams, config: Any) -> list[Setting]:
    """The section `sample` with each confidence threshold, each number of tokens a step, and each further setting.

    Raises: InputError for a step of more tokens than a block of the model holds, and for a setting that does not agree
        with the section.
    """
    chosen = [
        Setting(
            unmask="threshold",
            value=value,
            sample=_changed(sample, config, unmask="threshold", confidence_threshold=value),
        )
        for value in params.confidence_thresholds
    ]
    block_length, blocks = checked_block_length(config, sample), _blocks(sample, config)
    for tokens in params.tokens_per_step:
        if tokens > block_length:
            raise InputError(f"tokens_per_step={tokens} must not exceed {block_length=}, since steps are a block's")
        steps = max(-(-sample.gen_length // tokens), blocks)
        given = _changed(sample, config, unmask="fixed", steps=steps)
        chosen.append(Setting(unmask="fixed", value=tokens, sample=given))
    for number, knobs in enumerate(params.settings):
        given = _changed(sample, config, where=f"evaluate.settings[{number}]", **knobs)
        chosen.append(_named(knobs, given))
    return chosen


def _changed(sample: SampleParams, config: Any, *, where: str = "evaluate", **knobs: Any) -> SampleParams:
    """The section `sample` with other knobs. Raises InputError if they do not agree with it."""
    given = validated(SampleParams, sample.model_dump() | knobs, where)
    # Where no number of steps is asked for, the schedule is planned all the same: each block needs one.
    return given if "steps" in knobs else given.model_copy(update={"steps": max(given.steps, _blocks(given, config))})


def _blocks(sample: SampleParams, config: Any) -> int:
    """Most blocks that an answer touches. Where blocks are counted from position 0, it may begin within one."""
    block_length = checked_block_length(config, sample)
    before = block_length - 1 if is_causal(resolve_policy(config, sample)) else 0
    return -(-(before + sample.gen_length) // block_length)


def _named(knobs: Mapping[str, Any], sample: SampleParams) -> Setting:
    """A further setting, called by its way of unmasking, and by the other knobs that it changes."""
    own = UNMASKING[sample.unmask].knob
    values = {name: value for name, value in knobs.items() if name != "unmask"}
    others = [name for name in values if name != own]
    numbers = list(values.values()) or [getattr(sample, own or "steps")]
    value = numbers[0] if len(numbers) == 1 else ", ".join(f"{name} {value}" for name, value in values.items())
    return Setting(unmask=" + ".join([sample.unmask, *others]), value=value, sample=sample)


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
    for setting in chosen:
        try:
            check_request(text.model, prompts, setting.sample)
        except InputError as error:
            raise InputError(f"evaluate: unmask {setting.unmask} at {setting.value}: {error}") from error
    results = [_at(text, prompts, references, setting, params, processes) for setting in chosen]
    return [quality for quality, _ in results], [speed for _, speed in results]


def _at(
    text: TextModel,
    prompts: Sequence[Sequence[int]],
    references: Sequence[str],
    setting: Setting,
    params: EvaluateParams,
    processes: Processes,
) -> tuple[Quality, Speed]:
    sample = setting.sample
    tokens, passes, seconds, backend = _answers(text, prompts, sample, params.seed, processes)
    answers = [row[row != NO_TOKEN].tolist() for row in tokens]
    matches = [
        compared(text.decode(answer), reference, sample.extract)["match"]
        for answer, reference in zip(answers, references, strict=True)
    ]
    bound = _bound(text, prompts, answers, params, processes)
    count, rows = sum(map(len, answers)), np.bincount(np.arange(len(prompts)) // sample.batch_size)
    quality = Quality(
        unmask=setting.unmask,
        setting=setting.value,
        exact_match=round(sum(matches) / len(matches), 6),
        answer_nll=round(bound.nats, 6),
        answer_nll_error=bound.known_error(6),
        tokens=count,
        forward_passes=int(passes.sum()),
        tokens_per_pass=round(count / float((passes * rows).sum()), 6),
    )
    total = float(seconds.sum())
    return quality, Speed(setting.unmask, setting.value, round(total, 3), round(count / total, 1), backend)


def _bound(
    text: TextModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    params: EvaluateParams,
    processes: Processes,
) -> Bound:
    """The model's own bound of its answers, per token."""
    estimates = estimate(
        text.model,
        [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)],
        rounds=params.answer_rounds,
        seed=params.seed,
        prompt_lengths=[len(prompt) for prompt in prompts],
        batch_tokens=params.batch_tokens,
        share=processes.share,
    )
    return estimates.reduced(processes.sum).per_token()


def _answers(
    text: TextModel, prompts: Sequence[Sequence[int]], sample: SampleParams, seed: int, processes: Processes
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], str]:
    """Answers [P, gen_length], `NO_TOKEN` after their end; passes and seconds of each batch; this process's backend."""
    starts = range(0, len(prompts), sample.batch_size)
    tokens = np.zeros((len(prompts), sample.gen_length), np.int64)
    backend, passes, seconds = "", np.zeros(len(starts), np.int64), np.zeros(len(starts))
    for number in range(processes.rank, len(starts), processes.count):
        rows = range(starts[number], min(starts[number] + sample.batch_size, len(prompts)))
        begin = time.perf_counter()
        found = generate(
            text.model, [prompts[row] for row in rows], sample, seed=seed, row_keys=rows, eos_token_ids=text.ends
        )
        answers, backend = [answer.tolist() for answer in found.tokens], found.backend  # waits for the device
        seconds[number], passes[number] = time.perf_counter() - begin, found.forward_passes
        for row, answer in zip(rows, answers, strict=True):
            tokens[row] = answer + [NO_TOKEN] * (sample.gen_length - len(answer))
    return processes.sum(tokens), processes.sum(passes), processes.sum(seconds), backend


def as_rows(found: Sequence[Quality | Speed]) -> list[dict[str, Any]]:
    """For JSON and tables."""
    return [asdict(entry) for entry in found]
