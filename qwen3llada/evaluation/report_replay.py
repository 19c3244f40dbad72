"""Answers with the order in which their tokens were decoded, for the report to play."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen3llada.corpus.token_data import load_tokens
from qwen3llada.sampling.params import SampleParams

if TYPE_CHECKING:
    from qwen3llada.sampling.text import TextModel


def record_answers(model: Path, data: Path, params: SampleParams, *, count: int, seed: int) -> list[dict[str, Any]]:
    """Answer the first `count` of the prompts in samples.jsonl once more, watching; their answers are the same.

    Args:
        model: folder of the checkpoint. data: folder of tokenized prompts and answers.

    Returns: as `watch_answers`.
    """
    if count == 0:
        return []
    from qwen3llada.sampling.text import TextModel

    dataset = load_tokens(data)
    asked = min(params.samples or len(dataset), len(dataset))
    chosen = [dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, asked).round()[:count]]
    prompts = [sample.tokens[: sample.prompt_length].tolist() for sample in chosen]
    return watch_answers(TextModel.load(model, bf16=params.bf16), prompts, params, seed=seed)


def watch_answers(
    text: "TextModel", prompts: Sequence[Sequence[int]], params: SampleParams, *, seed: int
) -> list[dict[str, Any]]:
    """Answer encoded prompts and note when each token was decoded.

    Returns: for each prompt {"prompt": text, "tokens": text of each answer token, "at": forward pass (from 0) that
        committed it, "confidence": probability that it had then}.
    """
    import torch

    from qwen3llada.sampling.sampler import generate

    begin = max(map(len, prompts))
    at = torch.full((len(prompts), begin + params.gen_length), -1)
    confidence = torch.zeros(at.shape)

    def watch(step: Any) -> None:
        committed = step.committed.cpu()
        at[committed] = step.index
        confidence[committed] = step.confidence.cpu()[committed]

    keys = range(len(prompts))
    generation = generate(text.model, prompts, params, seed=seed, row_keys=keys, eos_token_ids=text.ends, on_step=watch)
    rows = []
    for row, (prompt, tokens) in enumerate(zip(prompts, generation.tokens, strict=True)):
        answer = slice(begin, begin + len(tokens))
        rows.append(
            {
                "prompt": text.decode(prompt),
                "tokens": _pieces(text.tokenizer, tokens.tolist()),
                "at": at[row, answer].tolist(),
                "confidence": [round(value, 3) for value in confidence[row, answer].tolist()],
            }
        )
    return rows


def _pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """The text that each token adds; a character that spans tokens appears with its last one."""
    pieces, before = [], ""
    for end in range(1, len(tokens) + 1):
        now = tokenizer.decode(tokens[:end], skip_special_tokens=False)
        whole = not now.endswith("\ufffd")
        pieces.append(now[len(before) :] if whole else "")
        before = now if whole else before
    return pieces
