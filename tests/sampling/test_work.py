"""No unnecessary work: the actual inputs of the model and of the vocabulary projection."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vocabulary import EOS, MASK, VOCAB

from qwen3llada.modeling.attention import layer_kinds
from qwen3llada.sampling import head
from qwen3llada.sampling.sampler import SampleParams, generate

SIZES = {"steps": 12, "gen_length": 12, "block_length": 4}


@contextmanager
def watched(model):
    """Yields (rows, columns) of each forward pass of the body, and the number of positions of each projection."""
    passes, projected = [], []
    hooks = [
        model.model.register_forward_pre_hook(
            lambda _, args, given: passes.append(tuple(given["input_ids"].shape)), with_kwargs=True
        ),
        model.get_output_embeddings().register_forward_pre_hook(lambda _, args: projected.append(len(args[0]))),
    ]
    try:
        yield passes, projected
    finally:
        for hook in hooks:
            hook.remove()


def seen(model, prompts, policy="full", ends=(), **given):
    model.config.attention_policy = policy
    with watched(model) as (passes, projected):
        generation = generate(model, prompts, SampleParams(**(SIZES | given)), eos_token_ids=ends)
    assert generation.forward_passes == len(passes)
    return generation, passes, projected


def test_only_masked_positions_of_the_block_meet_the_vocabulary(model):
    _, passes, projected = seen(model, [[1, 2, 3], [4]])
    assert projected == [8, 6, 4, 2] * 3
    assert passes == [(2, 3 + 12)] * 12


def test_the_prompt_is_computed_once_under_block_attention(model):
    _, passes, _ = seen(model, [[1, 2, 3, 4, 5], [4]], "block")
    assert passes == [(2, 5)] + [(2, 4)] * 12
    _, passes, _ = seen(model, [[1, 2, 3, 4, 5], [4]], "block", parallel_blocks=True)
    assert passes == [(2, 5)] + [(2 * 3, 4)] * 4


def test_finished_blocks_are_computed_once_under_block_causal_attention(model):
    """Finished blocks are computed together with the next block's first step; the last one never."""
    _, passes, _ = seen(model, [[1, 2, 3, 4]], "block_causal")
    assert passes == [(1, 4)] + [(1, 4)] * 4 + ([(1, 8)] + [(1, 4)] * 3) * 2
    _, passes, _ = seen(model, [[1, 2, 3, 4, 5]], "block_causal")  # the answer completes the block of the fifth token
    assert passes == [(1, 4)] + [(1, 4)] * 3 + ([(1, 8)] + [(1, 4)] * 2) * 2 + [(1, 5)]


@pytest.mark.parametrize("policy", ["block_causal", "window", "alternate:window,block_causal"])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"cfg_scale": 1.0},
        {"unmask": "threshold", "confidence_threshold": 0.3},
        {"edit_threshold": 0.2},
        {"remask": 1, "steps": 6},
    ],
)
def test_blocks_cost_their_steps_and_one_pass_more(model, policy, knobs):
    """The clean pass of each finished block is the next block's first step, over both: 2 · block_length columns."""
    model.config.layer_types = layer_kinds(policy, model.config.num_hidden_layers)
    steps = []
    model.config.attention_policy = policy
    with watched(model) as (passes, _):
        generate(
            model,
            [[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7, 6]],
            SampleParams(**(SIZES | knobs)),
            eos_token_ids=(),
            on_step=lambda step: steps.append(step.index),
        )
    assert len(passes) == len(steps) + 1
    assert [columns for _, columns in passes].count(8) == 1 + 2  # the prompts, and 2 of 3 blocks joined with the next
    assert {columns for _, columns in passes} == {4, 8}


@pytest.mark.parametrize("policy", ["full", "block", "block_causal"])
@pytest.mark.parametrize("guided", [False, True])
def test_rows_that_have_ended_leave_the_batch(model, policy, guided):
    """The first row decodes the end token at once, the second never."""
    prompts, scale, halves = [[8, 10, 12, 14], [1, 2, 3, 4]], 0.5 if guided else 0.0, 2 if guided else 1
    free, *_ = seen(model, prompts, policy, cfg_scale=scale)
    first, second = (answer.tolist() for answer in free.tokens)
    ends = [token for token in first[:4] if token not in second][:1]
    assert ends
    _, passes, projected = seen(model, prompts, policy, ends, cfg_scale=scale)
    rows = [rows for rows, _ in passes]
    assert rows[0] == 2 * halves  # both rows, and under guidance both halves of each, in one batch
    assert rows[-1] == halves
    assert rows == sorted(rows, reverse=True)
    assert projected[: 4 * halves : halves] == [8, 6, 4, 2]
    assert projected[-8 * halves :: halves] == [4, 3, 2, 1] * 2


class Largest(TorchDispatchMode):
    """Most numbers in any vocabulary-wide tensor that an operation makes, except the projection."""

    def __init__(self, projection) -> None:
        super().__init__()
        self.numbers, self.weight = 0, projection.weight.data_ptr()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple) else (made,):
            wide = isinstance(tensor, torch.Tensor) and VOCAB in tensor.shape[-1:]
            if wide and tensor.data_ptr() != self.weight:
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize(
    "given", [{}, {"temperature": 0.7, "remasking": "random_topk"}, {"cfg_scale": 1.0, "remasking": "entropy"}]
)
@pytest.mark.parametrize("parallel", [False, True])
def test_memory_does_not_grow_with_canvas_times_vocabulary(model, monkeypatch, given, parallel):
    """Memory for logits depends only on the chunk size, and chunks change no token."""
    rows_of_a_chunk, prompts = 5, [[1, 2, 3], [4]]
    given = given | {"block_attention": parallel, "parallel_blocks": parallel}
    whole = {n: seen(model, prompts, gen_length=n, steps=n, **given)[0] for n in (12, 40)}
    monkeypatch.setattr(head, "LOGITS_PER_CHUNK", rows_of_a_chunk * VOCAB)
    for length, expected in whole.items():
        with Largest(model.get_output_embeddings()) as largest:
            generation, _, projected = seen(model, prompts, gen_length=length, steps=length, **given)
        assert max(projected) == rows_of_a_chunk
        assert 0 < largest.numbers <= rows_of_a_chunk * VOCAB
        assert torch.equal(generation.canvas, expected.canvas)


def test_an_answer_without_a_prompt(model):
    for policy in ("full", "block", "block_causal"):
        generation, *_ = seen(model, [[], [3]], policy, (EOS,))
        assert MASK not in generation.canvas[:, 1:]
