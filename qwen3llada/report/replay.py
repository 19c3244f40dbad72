"""Answers with the order in which their tokens were decoded, for the report's player."""

from pathlib import Path

import numpy as np

from qwen3llada.corpus.tokens.mapped_tokens import load_tokens
from qwen3llada.sampling.dialogue.text_model import TextModel, Trace
from qwen3llada.sampling.params import SampleParams


def record_answers(model: Path, data: Path, params: SampleParams, *, count: int, seed: int) -> list[Trace]:
    """Answer the first `count` prompts of samples.jsonl again, with a trace. The answers are the same.

    Args:
        model: folder of the checkpoint. data: folder of tokenized prompts and answers.
    """
    if count == 0:
        return []
    dataset = load_tokens(data)
    asked = min(params.samples or len(dataset), len(dataset))
    chosen = [dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, asked).round()[:count]]
    prompts = [sample.tokens[: sample.prompt_length].tolist() for sample in chosen]
    traces: list[Trace] = []
    list(TextModel.load(model, bf16=params.bf16).answers(prompts, params, seed=seed, on_trace=traces.append))
    return traces
