"""Exact match over held-out prompts, against a count by hand."""

import shutil

import numpy as np
import pytest
from vocabulary import EOS

from qwen3llada.artifacts import read_json, read_jsonl, write_json
from qwen3llada.corpus.tokens.packing import MANIFEST, new_sequences
from qwen3llada.corpus.tokens.tokenizer import identity, template_identity
from qwen3llada.errors import InputError
from qwen3llada.sampling.dialogue.exact_match import answer_heldout
from qwen3llada.sampling.sampler import SampleParams, generate

PARAMS = SampleParams(steps=8, gen_length=8, block_length=4, batch_size=2, samples=0)
PROMPTS = [[3, 5, 7], [1, 2, 3], [40, 41, 42], [9, 6], [20, 22]]
RIGHT = [True, False, True, True, False]


def write(folder, samples, prompt_lengths, tokenizer=None):
    with new_sequences(folder, prompts=prompt_lengths is not None) as writer:
        lengths = np.array([len(sample) for sample in samples])
        tokens = np.concatenate([np.array(sample, np.int32) for sample in samples])
        writer.add(tokens, lengths, None if prompt_lengths is None else np.array(prompt_lengths))
        writer.close()
    if tokenizer is not None:
        write_json(folder / MANIFEST, identity(tokenizer) | template_identity(tokenizer, "plain"))
    return folder


@pytest.fixture(scope="module")
def heldout(model, text, tmp_path_factory):
    """Five prompts. The references are the model's own answers, two of them altered."""
    model.config.attention_policy = "full"
    samples = []
    for number, (prompt, right) in enumerate(zip(PROMPTS, RIGHT, strict=True)):
        (tokens,) = generate(model, [prompt], PARAMS, seed=3, row_keys=[number]).tokens
        answer = tokens.tolist()
        samples.append([*prompt, *(answer if right else [(answer[0] + 1) % EOS, *answer[1:]])])
    return write(tmp_path_factory.mktemp("heldout"), samples, [len(prompt) for prompt in PROMPTS], text.tokenizer)


def test_exact_match_is_what_a_count_gives(checkpoint, heldout, tmp_path):
    report = answer_heldout(checkpoint, heldout, tmp_path, PARAMS, seed=3)
    rows = list(read_jsonl(tmp_path / "samples.jsonl"))
    assert [row["match"] for row in rows] == RIGHT
    assert [row["answer"] == row["reference"] for row in rows] == RIGHT
    assert report == read_json(tmp_path / "sample.json")
    assert report["exact_match"] == 3 / 5
    assert report["samples"] == 5
    assert report["answer_tokens"] == sum(row["answer_tokens"] for row in rows)
    passes = [rows[i]["forward_passes"] for i in (0, 2, 4)]  # of batches of two
    assert report["forward_passes"] == sum(passes)
    speed = read_json(tmp_path / "sample_throughput.json")
    assert speed["tokens_per_second"] == pytest.approx(report["answer_tokens"] / speed["seconds"], rel=0.05)
    assert not any("seconds" in row or "backend" in row for row in rows)


def test_some_prompts_at_even_distances(checkpoint, heldout, tmp_path):
    chosen = PARAMS.model_copy(update={"samples": 3})
    answer_heldout(checkpoint, heldout, tmp_path, chosen, seed=3)
    prompts = [row["prompt"] for row in read_jsonl(tmp_path / "samples.jsonl")]
    assert prompts == [" ".join(map(str, PROMPTS[i])) for i in (0, 2, 4)]


def test_data_without_answers_are_refused(checkpoint, tmp_path):
    folder = write(tmp_path / "text", [[1, 2, 3], [4, 5]], None)
    with pytest.raises(ValueError, match="must hold prompts with answers, not plain text"):
        answer_heldout(checkpoint, folder, tmp_path / "reports", PARAMS, seed=3)
    assert not (tmp_path / "reports").exists()


def test_data_of_another_template_are_refused(checkpoint, heldout, tmp_path):
    shutil.copytree(heldout, tmp_path / "chats")
    write_json(tmp_path / "chats" / MANIFEST, read_json(heldout / MANIFEST) | {"template": "chat"})
    with pytest.raises(ValueError, match="its prompts have template=chat, the model's have plain"):
        answer_heldout(checkpoint, tmp_path / "chats", tmp_path / "reports", PARAMS, seed=3)
    assert not (tmp_path / "reports").exists()


def test_results_are_compared_where_something_is_extracted(checkpoint, heldout, tmp_path):
    """The last number of an answer of numbers is its last token, which spoiling the first one left as it was."""
    chosen = PARAMS.model_copy(update={"extract": "last_number"})
    report = answer_heldout(checkpoint, heldout, tmp_path, chosen, seed=3)
    rows = list(read_jsonl(tmp_path / "samples.jsonl"))
    for row in rows:
        assert row["result"] == row["answer"].split()[-1]
        assert row["reference_result"] == row["reference"].split()[-1]
        assert row["match"] == (row["result"] == row["reference_result"])
    assert report["exact_match"] == sum(row["match"] for row in rows) / 5 > 3 / 5


def test_a_reference_without_a_result_is_refused_before_anything_is_sampled(checkpoint, heldout, tmp_path):
    chosen = PARAMS.model_copy(update={"extract": "after:####"})
    with pytest.raises(InputError, match=r"extract=after:#### finds nothing in the reference '\d"):
        answer_heldout(checkpoint, heldout, tmp_path / "reports", chosen, seed=3)
    assert not (tmp_path / "reports").exists()
