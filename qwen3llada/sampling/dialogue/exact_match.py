"""How many held-out prompts a model answers exactly, as a whole or by the result in the answer."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qwen3llada.artifacts import write_json, write_jsonl
from qwen3llada.corpus.tokens.mapped_tokens import load_tokens
from qwen3llada.corpus.tokens.tokenizer import check_data
from qwen3llada.errors import InputError
from qwen3llada.sampling.dialogue.extraction import result_of, same_result
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.params import SampleParams

MACHINE_DEPENDENT = ("seconds", "backend")  # left out of the reports, which must be reproducible


def answer_heldout(model: Path, data: Path, reports: Path, params: SampleParams, *, seed: int) -> dict[str, Any]:
    """Answer held-out prompts and compare with their reference answers.

    Writes `reports`/samples.jsonl (prompt, answer, reference, match, counts), sample.json (exact_match and totals) and
    sample_throughput.json, the only one that depends on the machine.

    Args:
        model: folder of the checkpoint. data: folder of tokenized prompts and answers.

    Returns: the content of sample.json.
    Raises: InputError if the model or the data are missing or do not belong together, the data have no prompts, or
        `params.extract` finds nothing in a reference.
    """
    text = TextModel.load(model, bf16=params.bf16)
    prompts, references = heldout_prompts(text, data, params)
    answers = list(text.answers(prompts, params, seed=seed, progress=True))
    rows = [
        {k: v for k, v in asdict(answer).items() if k not in MACHINE_DEPENDENT}
        | {"reference": reference}
        | compared(answer.answer, reference, params.extract)
        for answer, reference in zip(answers, references, strict=True)
    ]
    batches = answers[:: params.batch_size]
    tokens, seconds = sum(row["answer_tokens"] for row in rows), sum(answer.seconds for answer in batches)
    report = {
        "exact_match": sum(row["match"] for row in rows) / len(rows),
        "samples": len(rows),
        "answer_tokens": tokens,
        "forward_passes": sum(answer.forward_passes for answer in batches),
    }
    speed = {
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "backend": answers[0].backend,
    }
    write_jsonl(reports / "samples.jsonl", rows)
    write_json(reports / "sample.json", report)
    write_json(reports / "sample_throughput.json", speed)
    return report


def heldout_prompts(text: TextModel, data: Path, params: SampleParams) -> tuple[list[list[int]], list[str]]:
    """Token ids of `params.samples` held-out prompts at even distances, and the texts of their reference answers.

    Raises: InputError as `answer_heldout`.
    """
    dataset = load_tokens(data)
    count = min(params.samples or len(dataset), len(dataset))
    if not count:
        raise InputError(f"{data}: no prompts in it")
    chosen = [dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, count).round()]
    if any(sample.prompt_length is None for sample in chosen):
        raise InputError(f"{data}: must hold prompts with answers, not plain text")
    check_data(data, text.tokenizer, text.model.config.prompt_template)
    references = [text.decode(sample.tokens[sample.prompt_length :].tolist()) for sample in chosen]
    for reference in references:
        if result_of(reference, params.extract) is None:
            raise InputError(f"{data}: extract={params.extract} finds nothing in the reference {reference!r:.80}")
    return [sample.tokens[: sample.prompt_length].tolist() for sample in chosen], references


def compared(answer: str, reference: str, extract: str) -> dict[str, Any]:
    """Whether an answer matches its reference, with the two results where these are not the whole texts."""
    results = result_of(answer, extract), result_of(reference, extract)
    match = {"match": same_result(*results, extract)}
    return match if extract == "none" else {"result": results[0], "reference_result": results[1]} | match
