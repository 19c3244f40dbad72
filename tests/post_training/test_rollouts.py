"""Rollouts are keyed, carry the sampler's steps and their rewards, and come from the weights that are trained."""

import numpy as np
import pytest
import torch
from tiny_settings import write_model

from qwen3llada.errors import InputError
from qwen3llada.post_training.params import RlParams, RolloutParams
from qwen3llada.post_training.rewards import RewardError, RewardSum, WeightedReward
from qwen3llada.post_training.rollouts import (
    Asked,
    figures,
    from_json,
    make_rollouts,
    rollout_key,
    to_json,
)
from qwen3llada.post_training.sampling_copy import SamplingCopy
from qwen3llada.sampling.decoding import Step
from qwen3llada.sampling.dialogue.text_model import TextModel
from qwen3llada.sampling.sampler import stream
from qwen3llada.training.start.start import start

EXACT = RewardSum([WeightedReward("exact_match", "", 1.0, "exact_match")])


@pytest.fixture(scope="module")
def text(tiny):
    found = TextModel.load(tiny / "model")
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return found


ASKED = [
    Asked(prompt=i, sample=s, tokens=tuple(range(2 + i)), reference="", key=rollout_key(3, i, s))
    for i in range(3)
    for s in range(2)
]
THRESHOLD = {"unmask": "threshold", "confidence_threshold": 0.05}


@pytest.mark.parametrize("changes", [{}, THRESHOLD, {"remasking": "random"}], ids=["fixed", "threshold", "random"])
@pytest.mark.parametrize("policy", ["full", "block_causal"])
def test_the_key_alone_decides_tokens_and_steps(text, policy, changes):
    """Not the batch: neither its size, nor which other rows it has, nor their order."""
    text.model.config.attention_policy = policy
    decode = RolloutParams(gen_length=8, block_length=4, steps=4, batch_size=6, **changes)
    whole = make_rollouts(text, ASKED, decode, EXACT, seed=2)
    for size, order in ((1, range(6)), (4, [5, 0, 3, 1, 2, 4]), (2, [3])):
        some = make_rollouts(
            text, [ASKED[i] for i in order], decode.model_copy(update={"batch_size": size}), EXACT, seed=2
        )
        for rollout, i in zip(some, order, strict=True):
            assert (rollout.tokens, rollout.steps) == (whole[i].tokens, whole[i].steps)
    assert whole[0].tokens != whole[1].tokens  # two of a group
    assert make_rollouts(text, ASKED, decode, EXACT, seed=3)[0].tokens != whole[0].tokens


def test_keys_differ_between_batches_prompts_and_samples():
    keys = {rollout_key(b, p, s) for b in range(5) for p in range(5) for s in range(5)}
    assert len(keys) == 125


@pytest.mark.parametrize("changes", [{}, THRESHOLD], ids=["fixed", "threshold"])
def test_steps_are_those_of_the_sampler(text, changes):
    """Each row alone: the forward pass in which the sampler says that it committed the position."""
    text.model.config.attention_policy = "full"
    decode = RolloutParams(gen_length=8, block_length=4, steps=4, batch_size=6, **changes)
    for rollout, asked in zip(make_rollouts(text, ASKED, decode, EXACT, seed=2), ASKED, strict=True):
        steps = stream(text.model, [asked.tokens], decode, seed=2, row_keys=[asked.key], eos_token_ids=text.ends)
        at = np.zeros(8, int)
        for step in steps:
            at[step.committed[0, len(asked.tokens) :].numpy()] = step.index + 1
        decided = len(rollout.tokens)
        assert rollout.steps == at[:decided].tolist()
        assert not at[decided:].any()


def test_passes_whose_tokens_were_revised_count(text):
    """Each row alone: passes in which the sampler committed anything. EOS tokens after an answer are no tokens."""
    text.model.config.attention_policy = "full"
    decode = RolloutParams(gen_length=8, block_length=4, steps=8, batch_size=6, remask=1)
    rollouts = make_rollouts(text, ASKED, decode, EXACT, seed=2)
    passes = []
    for asked in ASKED:
        steps = stream(text.model, [asked.tokens], decode, seed=2, row_keys=[asked.key], eos_token_ids=text.ends)
        passes.append(sum(bool(step.committed.any()) for step in steps))
    assert [rollout.passes for rollout in rollouts] == passes
    assert sum(passes) > sum(max(rollout.steps) for rollout in rollouts)  # those whose tokens stayed
    expected = np.mean([r.answer_tokens / n for r, n in zip(rollouts, passes, strict=True)])
    assert figures(rollouts)["tokens_per_pass"] == pytest.approx(expected)


def test_a_token_that_is_committed_twice_is_refused_where_the_order_is_trained(text, monkeypatch):
    from qwen3llada.post_training import rollouts as module

    def generate(*args, on_step, **kwargs):
        canvas = torch.zeros(1, 4, dtype=torch.long)
        for _ in range(2):
            committed = torch.ones(1, 4, dtype=torch.bool)
            on_step(Step(index=0, canvas=canvas, committed=committed, confidence=canvas.float()))

    monkeypatch.setattr(module, "generate", generate)
    with pytest.raises(InputError, match="method=trace needs rollouts that commit each token once"):
        make_rollouts(text, ASKED[:1], RolloutParams(gen_length=8, steps=4), EXACT, seed=0, once=True)


def test_a_failing_reward_stops_and_names_the_sample(text, tmp_path):
    (tmp_path / "mine.py").write_text("def odd(sample):\n    return 1 / 0\n")
    rewards = RewardSum([WeightedReward(f"{tmp_path}/mine.py:odd", "", 1.0, "odd")])
    with pytest.raises(RewardError, match=r"mine.py:odd failed: ZeroDivisionError: .*; prompt 'w0 w1', answer '"):
        make_rollouts(text, ASKED[:1], RolloutParams(gen_length=8, steps=4), rewards, seed=0)


def test_figures_and_json(text):
    rollouts = make_rollouts(text, ASKED, RolloutParams(gen_length=8, block_length=4, steps=4), EXACT, seed=2)
    assert from_json(to_json(rollouts)) == rollouts
    found = figures(rollouts, 2)
    assert found["tokens_per_pass"] == pytest.approx(np.mean([r.answer_tokens / max(r.steps) for r in rollouts]))
    rewards = [rollout.reward for rollout in rollouts]
    assert found["reward"] == np.mean(rewards)
    assert found["equal_groups"] == np.mean([a == b for a, b in zip(rewards[::2], rewards[1::2], strict=True)])


@pytest.mark.parametrize(("adapter", "bias"), [("none", False), ("lora", False), ("lora", True)])
def test_the_copy_has_the_trained_weights_and_sampling_changes_nothing(params, adapter, bias, tmp_path):
    changes: dict = {"adapter": {"method": adapter} | ({} if adapter == "none" else {"rank": 2})}
    if bias:
        write_model(tmp_path / "biased", attention_bias=True)
        changes["model"] = tmp_path / "biased"
    params = RlParams.model_validate(params.model_dump() | changes)
    from qwen3llada.post_training.task import Rewarded

    run = start(params, seed=1, template="plain", task=Rewarded(params))
    with torch.no_grad():
        for parameter in (*run.parameters(), *(p for n, p in run.model.named_parameters() if n.endswith("bias"))):
            parameter.add_(torch.randn_like(parameter))
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    state = torch.get_rng_state()
    copy = SamplingCopy(run).refresh(run)
    make_rollouts(copy, ASKED[:2], params.rollout, EXACT, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(copy.model(tokens).logits, run.model(tokens).logits, rtol=1e-4, atol=1e-5)


def test_the_weights_stay_where_graphs_read_them(params):
    """What the sampler's graphs were captured with is the copy itself, after each change of the trained weights."""
    pytest.importorskip("triton")
    from qwen3llada.post_training.task import Rewarded
    from qwen3llada.sampling.cuda.packed_model import PackedModel

    run = start(params, seed=1, template="plain", task=Rewarded(params))
    copy = SamplingCopy(run)
    packed = PackedModel(copy.refresh(run).model)
    with torch.no_grad():
        for parameter in run.parameters():
            parameter.add_(torch.randn_like(parameter))
    copy.refresh(run)
    assert not packed.stale
    for own, layer in zip(packed.layers, run.model.model.layers, strict=True):
        heads, mlp = layer.self_attn, layer.mlp
        assert torch.equal(own.qkv, torch.cat([p.weight for p in (heads.q_proj, heads.k_proj, heads.v_proj)]))
        assert torch.equal(own.gate_up, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        assert torch.equal(own.input_norm, layer.input_layernorm.weight)
        assert torch.equal(own.down, mlp.down_proj.weight)
    assert torch.equal(packed.embedding, run.model.get_input_embeddings().weight)
