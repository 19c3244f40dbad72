"""The time of post-training: its parts make up the batch, both policies train as many rows, and a failure is a row."""

from functools import partial

import pytest

from bench import random_run, rl_speed
from bench.rl_speed import Sizes, attempt, params_of, table, write_inputs

SIZES = Sizes(prompt=6, answer=8, block=4, steps=4, group=2, prompts=2, rows=4)
ROLLOUTS, PASSES = 4, 2  # two steps in a block of four


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_run, "DEVICE", rl_speed.torch.device("cpu"))
        write_inputs(folder, SIZES, random_run.TINY | {"hidden_size": 32, "intermediate_size": 64})
    return folder


@pytest.mark.parametrize(("policy", "kl"), [("full", 0.0), ("block_causal", 0.1)])
def test_the_parts_make_up_the_batch_and_every_rollout_is_trained(inputs, policy, kl, capsys):
    row = attempt(partial(params_of, inputs, policy, "trace", SIZES, kl=kl, bf16=False), 1, 60.0)
    assert row["batches"] == 1
    assert row["batch"] == pytest.approx(row["rollouts"] + row["first_model"] + row["training"])
    assert 0 < row["sampler"] < row["rollouts"]
    assert (row["first_model"] > 0) == (kl > 0)
    assert row["answer_tokens"] == ROLLOUTS * SIZES.answer
    assert row["trained_tokens"] == ROLLOUTS * PASSES * (SIZES.prompt + SIZES.answer)
    assert row["backend"] == "eager"
    table([{"policy": policy, "method": "trace"} | row])
    shown = capsys.readouterr().out
    assert f"{row['answer_tokens'] / row['rollouts']:,.0f} | {row['trained_tokens'] / row['training']:,.0f}" in shown


def test_a_failing_row_says_why(inputs, capsys):
    row = attempt(partial(params_of, inputs, "full", "guess", SIZES, kl=0.0, bf16=False), 1, 60.0)
    assert "method='guess' must be one of random_mask" in row["error"]
    table([{"policy": "full", "method": "guess"} | row])
    assert row["error"] in capsys.readouterr().out
