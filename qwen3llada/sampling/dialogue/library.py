"""The two functions that another project's code calls: `from qwen3llada import load, generate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch

from qwen3llada.commandline import validated
from qwen3llada.corpus.conversations.records import Exchange
from qwen3llada.errors import InputError
from qwen3llada.sampling.dialogue.text_model import Answer, TextModel
from qwen3llada.sampling.params import AnswerParams

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(
    path: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "float32"
) -> TextModel:
    """Load the checkpoint in folder `path`. The result's `.model` is the network, `.tokenizer` its tokenizer.

    Args:
        path: a folder written by convert, pretrain or sft; `~` is the home folder.
        device: "cpu", "cuda", "cuda:1" or a `torch.device`; None: the GPU if there is one.
        dtype: "float32", "bfloat16", or torch's dtype of that name.

    Raises: InputError for a folder without such a checkpoint, and for another device or dtype.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"dtype={name} must be one of {', '.join(DTYPES)}")
    return TextModel.load(
        Path(path).expanduser(), bf16=DTYPES[name] is torch.bfloat16, device=None if device is None else _usable(device)
    )


@overload
def generate(model: TextModel, prompts: str, *, system: str | None = ..., seed: int = ..., **knobs: Any) -> Answer: ...
@overload
def generate(
    model: TextModel, prompts: Sequence[str], *, system: str | None = ..., seed: int = ..., **knobs: Any
) -> list[Answer]: ...
def generate(
    model: TextModel, prompts: str | Sequence[str], *, system: str | None = None, seed: int = 0, **knobs: Any
) -> Answer | list[Answer]:
    """Answer text with text. For token ids there is `qwen3llada.sampling.sampler.generate`.

    Args:
        model: the result of `load`.
        prompts: a question, or a list of them. Each is formatted with the model's prompt template.
        system: the system prompt of all questions.
        seed: of all noise. Equal seeds give equal answers.
        knobs: fields of `AnswerParams` (steps, gen_length, block_length, temperature, cfg_scale, remasking, …). Others
            keep their defaults.

    Returns: for one question its `Answer`, with `.text`, `.answer_tokens`, `.forward_passes` and `.seconds`; for a list
        of questions the list of their answers.
    Raises: InputError for a question that is not text or too long for the model, a knob that does not exist (naming
        those that do), and a value outside its range.
    """
    if not isinstance(model, TextModel):
        raise InputError(
            f"model must be what qwen3llada.load returned, given {type(model).__name__}; a network alone is sampled"
            " with token ids by qwen3llada.sampling.sampler.generate"
        )
    if not isinstance(system, str | None):
        raise InputError(f"{system=} must be text or None")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"{seed=} must be a whole number")
    asked = _texts(prompts)
    params = validated(AnswerParams, knobs, "generate")
    encoded = model.encode([Exchange(prompt, "", system) for prompt in asked])
    answers = list(model.answers(encoded, params, seed=seed)) if asked else []
    return answers[0] if isinstance(prompts, str) else answers


def _texts(prompts: Any) -> list[str]:
    """Questions as a list. Raises InputError for anything that is not text."""
    asked = list(prompts) if isinstance(prompts, Sequence) and not isinstance(prompts, str) else [prompts]
    for prompt in asked:
        if not isinstance(prompt, str):
            raise InputError(
                f"prompts must be a text or a list of texts, given {prompt!r:.80}; token ids are for"
                " qwen3llada.sampling.sampler.generate"
            )
    return asked


def _usable(device: str | torch.device) -> torch.device:
    """The device, after a test allocation. Raises InputError if it cannot be used."""
    try:
        torch.zeros(1, device=device).item()  # fails on "meta", whose tensors have no values
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as error:  # PyTorch's errors for an unknown name or a missing GPU
        said = " ".join(str(error).splitlines()[:1])
        raise InputError(f"device={str(device)!r} cannot be used here: {said}") from error
