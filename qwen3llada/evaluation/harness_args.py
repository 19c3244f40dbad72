"""What lm-evaluation-harness hands to the model: `model_args` and the generation settings of a task, checked.

lm-eval's command line reads values as Python does, so a wrong one may come as any type.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from qwen3llada.commandline import ParamsError, validated
from qwen3llada.sampling.params import AnswerParams
from qwen3llada.section import Section

AUTO = re.compile(r"auto(:\d+(\.\d+)?)?")  # lm-eval's `auto` and `auto:N`


class ModelArgs(AnswerParams):
    """The knobs in lm-eval's `model_args`: those of the likelihood bounds, and those of the sampler."""

    rounds: int = Field(32, ge=1, le=10_000, description="Masks drawn for each likelihood, 1 to 10,000")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the masks and of the sampler, 0 to below 2^63")
    batch_tokens: int = Field(
        16384, ge=1, le=1_000_000_000, description="Tokens of a forward pass of likelihoods, 1 to 1e+09"
    )
    check_greedy: bool = Field(False, description="Whether a likelihood also says that greedy decoding gives the text")
    max_batch_size: int | None = Field(None, ge=1, le=65536, description="Most answers decoded together under auto")

    @property
    def answering(self) -> AnswerParams:
        """The sampler's knobs alone."""
        return AnswerParams.model_validate(self.model_dump(include=set(AnswerParams.model_fields)))


class GenerationArgs(Section):
    """What a task or `--gen_kwargs` asks of an answer."""

    until: str | tuple[str, ...] | None = None
    max_gen_toks: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.until,) if isinstance(self.until, str) else self.until or ()


def read_model_args(given: Mapping[str, Any]) -> tuple[ModelArgs, list[str]]:
    """`model_args` without `pretrained`, `dtype` and `device`, and a line for each that is not used as it stands.

    There is no search for the largest batch: `batch_size=auto` means the default, or `max_batch_size` if that is less.
    Raises: ParamsError for an unknown name, a wrong type and a value outside its range.
    """
    tree = {name: value for name, value in given.items() if name != "max_batch_size" or value is not None}
    asked = str(tree.get("batch_size"))
    if not AUTO.fullmatch(asked):
        args = validated(ModelArgs, tree, "model_args")
        limit = args.max_batch_size
        return args, [] if limit is None else [f"max_batch_size={limit} is not used: it goes with batch_size=auto"]
    del tree["batch_size"]
    args = validated(ModelArgs, tree, "model_args")
    size = min(args.batch_size, args.max_batch_size or args.batch_size)
    note = (
        f"batch_size={asked}: no size is searched for; {size} answers are decoded together, and likelihoods are batched"
        " by batch_tokens"
    )
    return args.model_copy(update={"batch_size": size}), [note]


def read_generation(given: Mapping[str, Any]) -> tuple[GenerationArgs, list[str]]:
    """The generation settings of a request, and a line for those that are not used.

    Raises: ParamsError for a wrong type.
    """
    known = {name: value for name, value in given.items() if name in GenerationArgs.model_fields}
    args, notes = validated(GenerationArgs, known, "generation_kwargs"), []
    if unused := sorted(given.keys() - known.keys()):
        notes.append(f"generation settings that this model does not have: {', '.join(unused)}")
    if args.temperature and not args.do_sample:
        notes.append(f"temperature={args.temperature:g} is not used without do_sample=true")
    return args, notes


def check_folder(pretrained: Any) -> str:
    """The folder of the checkpoint as text. Raises ParamsError if it is missing or not text."""
    if pretrained is None:
        raise ParamsError("model_args: pretrained: missing, must be given: the folder of a checkpoint")
    if not isinstance(pretrained, str | Path):
        raise ParamsError(
            f"model_args: pretrained: given {pretrained!r:.80}, must be the folder of a checkpoint; lm-eval takes a"
            " name that reads as a number for one: write ./NAME"
        )
    return str(pretrained)
